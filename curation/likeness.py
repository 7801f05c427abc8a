"""How alike two small pictures are, by measures that light, camera motion or mixing of pictures leave alone.

Pictures are H W 3 BGR uint8 of ``SIZE``. Everything here is cheap enough to be asked for each doubtful pair of frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

SIZE = (64, 36)  # width, height
_GRID = (8, 5)  # cells across, cells down
_DARK, _BRIGHT = 3, 250  # beyond these there is no structure left to compare
_TILE = (16, 9)
_TILE_IS_SAME = 0.75
_ROOTS = (np.sqrt(np.arange(256) / 255.0) * 255).astype(np.uint8)  # spreads the colours of dark scenes


def shrink(picture: np.ndarray) -> np.ndarray:
    """The picture at ``SIZE``."""
    return np.asarray(cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA))


def grid(picture: np.ndarray) -> np.ndarray:
    """Mean colours of 40 cells: 120 float32. A mixture of two pictures has the mixture of their grids."""
    return np.asarray(cv2.resize(picture, _GRID, interpolation=cv2.INTER_AREA), np.float32).ravel()


def luma(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.float32)


def contrast(picture: np.ndarray) -> float:
    """Standard deviation of the colours, averaged over channels; about 0 for a picture of one colour."""
    return float(cv2.meanStdDev(picture)[1].mean())


def colours(picture: np.ndarray) -> np.ndarray:
    """Histogram of colours that adds up to 1, in three staggered quantisations, so that small shifts change little."""
    levels = _ROOTS[picture].reshape(-1, 3).astype(np.int32)
    counts = []
    for shift in (0, 21, 42):
        cells = (levels + shift) // 64
        codes = cells[:, 0] * 25 + cells[:, 1] * 5 + cells[:, 2]
        counts.append(np.bincount(codes, minlength=125))
    return np.concatenate(counts).astype(np.float32) / (3 * len(levels))


def colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    """From 0 (the same colours) to 1 (none in common)."""
    return 1.0 - float(np.minimum(colours(a), colours(b)).sum())


def structure(picture: np.ndarray) -> np.ndarray:
    """What is where, without how bright it is: luma against its surroundings; 0 where it is burnt out or black."""
    grey = luma(picture)
    detail = grey - cv2.GaussianBlur(grey, (0, 0), 4)
    spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 4) + 1.0)
    return np.asarray(detail / spread * ((grey > _DARK) & (grey < _BRIGHT)))


def same_structure(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the middle of one picture with the best place for it in the other: 1 for the same, -1 for nothing.

    Brightness, exposure and a camera that moved by up to a sixth of the picture make no difference.
    """
    p, q = structure(a), structure(b)
    best = -1.0
    for inner, outer in ((p, q), (q, p)):
        middle = inner[6:-6, 11:-11]
        if float(middle.std()) >= 0.05:
            best = max(best, float(cv2.matchTemplate(outer, middle, cv2.TM_CCOEFF_NORMED).max()))
    return best


def same_tiles(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the textured tiles of one picture that are found again near their place in the other, 0..1."""
    p, q = structure(a), structure(b)
    return max(_found_again(p, q, luma(a)), _found_again(q, p, luma(b)))


def _found_again(tiles: np.ndarray, other: np.ndarray, grey: np.ndarray) -> float:
    width, height = _TILE
    around = cv2.copyMakeBorder(other, 4, 4, 6, 6, cv2.BORDER_CONSTANT, value=0)
    textured = found = 0
    for y in range(0, SIZE[1], height):
        for x in range(0, SIZE[0], width):
            if float(grey[y : y + height, x : x + width].std()) < 4:
                continue
            place = around[y : y + height + 8, x : x + width + 12]
            match = cv2.matchTemplate(place, tiles[y : y + height, x : x + width], cv2.TM_CCOEFF_NORMED)
            textured += 1
            found += float(match.max()) > _TILE_IS_SAME
    return found / textured if textured >= 3 else 0.0


_FLOW = None
_Y, _X = np.mgrid[0 : SIZE[1], 0 : SIZE[0]].astype(np.float32)


def unexplained(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean change of luma from a to b: what is left of it when motion is taken out, and all of it."""
    global _FLOW
    if _FLOW is None:
        _FLOW = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        _FLOW.setVariationalRefinementIterations(0)
        _FLOW.setFinestScale(0)
    before, after = cv2.cvtColor(a, cv2.COLOR_BGR2GRAY), cv2.cvtColor(b, cv2.COLOR_BGR2GRAY)
    flow = _FLOW.calc(after, before, None)
    moved = cv2.remap(before, _X + flow[..., 0], _Y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return float(cv2.absdiff(after, moved).mean()), float(cv2.absdiff(after, before).mean())


def not_motion(pictures: Sequence[np.ndarray]) -> float:
    """Share of the change along a run of pictures that motion does not explain: 0.2 in a pan, 0.9 in a dissolve."""
    steps = [unexplained(a, b) for a, b in itertools.pairwise(pictures)]
    return sum(left for left, _ in steps) / (sum(all_ for _, all_ in steps) + 1e-6)


def mixture_fit(a: np.ndarray, middle: np.ndarray, b: np.ndarray) -> float:
    """How much of the fine detail of ``middle`` is a sum of that of a and b: 1 for a dissolve at rest, 0 for none."""
    p, m, q = (_detail(picture) for picture in (a, middle, b))
    basis = np.stack([p, q], axis=1)
    weights = np.clip(np.linalg.lstsq(basis, m, rcond=None)[0], 0.0, 1.2)
    left = m - basis @ weights
    return 1.0 - float(left @ left) / (float(m @ m) + 1.0)


def _detail(picture: np.ndarray) -> np.ndarray:
    grey = luma(picture)
    return (grey - cv2.GaussianBlur(grey, (0, 0), 4)).ravel()
