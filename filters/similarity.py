"""How a picture as a whole moves to the next: a similarity (shift, growth, turn) that most of it agrees with.

Suffixes in this file: S steps (pairs of pictures h w), N points of a grid over the picture, P its pixels. Places and
displacements are in frame heights from the middle, x to the right and y down.

Model: d(p) = tx + a x - b y, ty + a y + b x. It is fitted to the flow by least squares reweighted after Geman and
McClure, with a scale that shrinks (Black & Rangarajan, IJCV 1996), and not by RANSAC: it draws no lots and takes all
steps at once. A patch's flow is wrong half a patch around a moving thing, so where the flow disagrees the fit is made
from several parts of the picture, and the best goes on on the pixels themselves (Odobez & Bouthemy, JVCIR 1995).
"""

from __future__ import annotations

import cv2
import numpy as np

_STRIDE_PX = 2  # between the grid's points: the flow has one patch per 5 px, so no more are needed
_TEXTURE = 8e-6  # eigenvalue at which a point counts half: that of noise of 2 grey levels (of 255)
_FLOOR, _SHARE = 0.004, 0.05  # heights, and share of the mean displacement: what the flow itself is off by
_COARSE, _FINE = (6.0, 2.0), (2.0, 1.2, 1.0)  # the scale of each round, in units of the above
_PARTS = ((0, -1), (0, 1), (1, -1), (1, 1))  # axis and side of the third of the picture that a fit starts from
_NOISE = 1.0  # grey levels by which pixels differ although they show the same
_SLACK_PX = 0.3  # and pixels by which the model may miss
_DETAIL = 1.0  # grey levels a pixel: a gradient that counts half
_ROUNDS = 3  # of refinement: later ones change speeds by less than 0.002 heights a second


def places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid's points, x and y, N each, for frames of a size in pixels."""
    y, x = np.mgrid[0:height:_STRIDE_PX, 0:width:_STRIDE_PX].astype(np.float32)
    return (x.ravel() - (width - 1) / 2) / height, (y.ravel() - (height - 1) / 2) / height


def sampled(flow: np.ndarray) -> np.ndarray:
    """The vectors of h w 2 at the grid's points, N 2."""
    return flow[::_STRIDE_PX, ::_STRIDE_PX].reshape(-1, 2)


def texture(picture: np.ndarray) -> np.ndarray:
    """How well the grid's points can be followed, N, 0 to 1, for a grey picture h w.

    From the smaller eigenvalue of the gradients' covariance: along an edge there is nothing to hold on to (Shi &
    Tomasi, CVPR 1994).
    """
    corners = cv2.cornerMinEigenVal(picture, 5, ksize=3)[::_STRIDE_PX, ::_STRIDE_PX].ravel()
    return np.asarray(corners / (corners + _TEXTURE))


def displacement(model: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What models (tx, ty, a, b) S 4 give at the points: along and down, S N each."""
    tx, ty, a, b = model.T[..., None]
    return tx + a * x - b * y, ty + a * y + b * x


class Vectors:
    """Flow at the grid's points as the fit needs it: (u, v) and weights, S N each."""

    def __init__(self, flows: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> None:
        height, width = shape
        self.shape = shape
        self.x, self.y = places(height, width)
        self.u, self.v = np.ascontiguousarray(np.moveaxis(flows, -1, 0)) / np.float32(height)
        inside = (np.abs(self.x + self.u) < width / height / 2) & (np.abs(self.y + self.v) < 0.5)
        self.weights = weights * inside  # nothing is known of what has left the picture

    def fitted(self) -> np.ndarray:
        """Models S 4 that most of the vectors agree with."""
        return self._settle(self._shift(), self.weights, _COARSE + _FINE)

    def fitted_from(self, model: np.ndarray) -> np.ndarray:
        """The same, begun from models S 4 that are nearly right."""
        return self._settle(model, self.weights, _FINE)

    def from_parts(self) -> np.ndarray:
        """The same, begun from each of four parts of the picture: 4 S 4."""
        edges = self.shape[1] / self.shape[0] / 6, 1 / 6
        parts = [side * (self.x, self.y)[axis] > edges[axis] for axis, side in _PARTS]
        starts = np.concatenate([self._shift(part) for part in parts])
        weights = np.concatenate([self.weights * part for part in parts])
        models = self._settle(starts, weights, _COARSE)
        return self._settle(models, np.tile(self.weights, (4, 1)), _FINE).reshape(4, -1, 4)

    def _shift(self, part: np.ndarray | slice = slice(None)) -> np.ndarray:
        both = np.stack([self.u[:, part], self.v[:, part]])
        shift = np.partition(both, both.shape[2] // 2, axis=2)[:, :, both.shape[2] // 2]
        return np.stack([*shift, *np.zeros_like(shift)], axis=1)

    def _settle(self, model: np.ndarray, weights: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
        """Reweight and solve, once per scale, for models and weights of each step, or of all steps several times."""
        x, y, times = self.x, self.y, len(model) // max(1, len(self.u))
        u, v = (np.tile(values, (times, 1)) for values in (self.u, self.v))
        basis, grown, turned = np.stack([np.ones_like(x), x, y, x * x + y * y]), x * u + y * v, x * v - y * u
        for scale in scales:
            along, down = displacement(model, x, y)
            size = _FLOOR + _SHARE * (np.abs(along).mean(axis=1) + np.abs(down).mean(axis=1))
            rest = ((along - u) ** 2 + (down - v) ** 2) / (scale * size[:, None]) ** 2
            trust = weights / (1 + rest) ** 2
            # einsum, not matmul: the order of its additions does not depend on a library of the machine.
            w, wx, wy, wr = np.einsum("sn,kn->ks", trust, basis)
            wu, wv, wg, wt = (np.einsum("sn,sn->s", trust, values) for values in (u, v, grown, turned))
            w = np.maximum(w, 1e-6)
            spread = np.maximum(wr - (wx * wx + wy * wy) / w, 1e-6)
            a = (wg - (wx * wu + wy * wv) / w) / spread
            b = (wt - (wx * wv - wy * wu) / w) / spread
            model = np.stack([(wu - a * wx + b * wy) / w, (wv - a * wy - b * wx) / w, a, b], axis=1)
        return model


class Pixels:
    """Pairs of pictures, S h w uint8 each, on which models are tried and refined."""

    def __init__(self, before: np.ndarray, after: np.ndarray) -> None:
        count, rows, columns = before.shape
        self._after, self._height = after.astype(np.float32), rows
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
        x, y = (x.ravel() - (columns - 1) / 2) / self._height, (y.ravel() - (rows - 1) / 2) / self._height
        image = before.astype(np.float32)
        slopes = np.zeros((2, *image.shape), np.float32)
        slopes[0, :, :, 1:-1] = (image[:, :, 2:] - image[:, :, :-2]) / 2
        slopes[1, :, 1:-1] = (image[:, 2:] - image[:, :-2]) / 2
        across, down = slopes.reshape(2, count, -1)
        steep = across * across + down * down
        self._image = image.reshape(count, -1)
        self._trust = 1 / (_NOISE**2 + _SLACK_PX**2 * steep)
        self._detail = steep / (steep + _DETAIL**2)
        # What one more of each parameter, and of brightness, adds to a pixel: S 5 P.
        self._change = np.stack(
            [across, down, across * x + down * y, down * x - across * y, np.ones_like(x) + 0 * down], 1
        )
        self._change[:, :4] *= self._height

    def support(self, model: np.ndarray) -> np.ndarray:
        """Share (0..1) of the pictures' detail that models S 4 explain, S."""
        rest, seen = self._rest(model)
        detail = self._detail * seen
        return (detail * (rest * rest * self._trust < 4)).sum(axis=1) / np.maximum(detail.sum(axis=1), 1e-6)

    def refined(self, model: np.ndarray) -> np.ndarray:
        """Models S 4 moved to where they explain the pixels best."""
        brightness = np.zeros((len(model), 1), np.float32)
        for _ in range(_ROUNDS):
            rest, seen = self._rest(model)
            rest += brightness
            weights = seen * self._trust / (1 + rest * rest * self._trust) ** 2
            pull = self._change * weights[:, None]
            square = np.einsum("sip,sjp->sij", pull, self._change).astype(np.float64)
            square[:, range(5), range(5)] += 0.01 * np.array([self._height**2] * 4 + [1])  # flat pictures stay put
            step = np.linalg.solve(square, np.einsum("sip,sp->si", pull, rest)[..., None].astype(np.float64))[..., 0]
            model, brightness = model - step[:, :4], brightness - step[:, 4:].astype(np.float32)
        return model

    def _rest(self, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Grey levels by which the later picture, brought back, differs, and which pixels it still shows: S P each."""
        count, rows, columns = self._after.shape
        back = np.empty((count, rows, columns), np.float32)
        x, y = (columns - 1) / 2, (rows - 1) / 2
        turns = np.empty((count, 2, 3))
        turns[:, 0, 0] = turns[:, 1, 1] = 1 + model[:, 2]
        turns[:, 1, 0], turns[:, 0, 1] = model[:, 3], -model[:, 3]
        turns[:, 0, 2] = model[:, 0] * rows - model[:, 2] * x + model[:, 3] * y
        turns[:, 1, 2] = model[:, 1] * rows - model[:, 2] * y - model[:, 3] * x
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for picture, turn, into in zip(self._after, turns, back, strict=True):
            cv2.warpAffine(picture, turn, (columns, rows), dst=into, flags=how, borderValue=-1000)
        seen = back.reshape(count, -1) >= 0
        return back.reshape(count, -1) - self._image, seen
