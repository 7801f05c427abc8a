"""How alike two small pictures are, by measures that light, camera motion or mixing of pictures leave alone.

Pictures are H W 3 BGR uint8 of ``SIZE``. What is derived from a picture is kept with it, as each is compared with many.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

SIZE = (64, 36)  # width, height
_DARK, _BRIGHT = 3, 250  # beyond these there is no structure left to compare
_BAR = 10  # grey levels by which the rows and columns of a bar differ at most
_TILE = (16, 9)
_TILE_IS_SAME = 0.75
_ROOTS = (np.sqrt(np.arange(256) / 255.0) * 255).astype(np.uint8)  # spreads the colours of dark scenes
_COLOUR_CODES = [  # what each value of blue, green and red adds to the number of a colour
    (((_ROOTS.astype(np.int32) + shift) // 64)[None, :, None] * np.array([25, 5, 1])).astype(np.uint8)
    for shift in (0, 21, 42)
]


class Look:
    """A frame that is looked at, and what was found out about it.

    Attributes:
        frame, t_s: its index, and when it is shown.
        picture: at ``SIZE``.
        skipped: the frames between the look before and this one.
        since: ``moved_structure`` since the look before; None: not asked for yet.
    """

    def __init__(self, frame: int, t_s: float, picture: np.ndarray) -> None:
        self.frame, self.t_s, self.picture = frame, t_s, picture
        self.skipped: list[Look] = []
        self.since: tuple[float, float] | None = None

    @functools.cached_property
    def grey(self) -> np.ndarray:
        """Luma, H W uint8."""
        return np.asarray(cv2.cvtColor(self.picture, cv2.COLOR_BGR2GRAY))

    @functools.cached_property
    def luma(self) -> np.ndarray:
        """Luma, H W float32."""
        return self.grey.astype(np.float32)

    @functools.cached_property
    def detail(self) -> np.ndarray:
        """Luma without its surroundings, flat."""
        return (self.luma - cv2.GaussianBlur(self.luma, (0, 0), 4)).ravel()

    @functools.cached_property
    def structure(self) -> np.ndarray:
        """What is where, without how bright it is: luma against its surroundings; 0 where it is burnt out or black."""
        detail = self.detail.reshape(self.luma.shape)
        spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 4) + 1.0)
        return np.asarray(detail / spread * ((self.grey > _DARK) & (self.grey < _BRIGHT)), np.float32)

    @functools.cached_property
    def relief(self) -> np.ndarray:
        """Structure as a picture, H W uint8."""
        return np.clip(self.structure * 40 + 128, 0, 255).astype(np.uint8)

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """Histogram of colours that adds up to 1, in three staggered quantisations: small shifts change little."""
        counts = []
        for codes in _COLOUR_CODES:
            blue, green, red = cv2.split(cv2.LUT(self.picture, codes))
            counts.append(np.bincount((blue + green + red).ravel(), minlength=125))
        return np.concatenate(counts).astype(np.float32) / (3 * self.grey.size)

    @functools.cached_property
    def hues(self) -> np.ndarray:
        """Histogram of colours without their brightness, in two staggered quantisations; adds up to 1."""
        levels = self.picture.reshape(-1, 3).astype(np.int32)
        total = levels.sum(axis=1) + 32
        counts = []
        for shift in (0, 1):
            blue, red = ((levels[:, k] * 40 // total + shift) // 2 for k in (0, 2))
            counts.append(np.bincount(blue * 21 + red, minlength=441))
        return np.concatenate(counts).astype(np.float32) / (2 * len(levels))


def shrink(picture: np.ndarray) -> np.ndarray:
    """The picture at ``SIZE``."""
    if picture.shape[:2] == SIZE[::-1]:
        return picture
    return np.asarray(cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA))


def spread(values: np.ndarray) -> float:
    """Standard deviation, H W."""
    return float(cv2.meanStdDev(values)[1][0, 0])


def contrasts(pictures: np.ndarray) -> np.ndarray:
    """Contrast of each grey picture of N H W, N 2: its standard deviation, and one that bars and logos hardly touch.

    The second is the mean deviation within the bars, times what makes both equal in a picture of normal noise.
    """
    levels = pictures.astype(np.int16)
    insides = zip(*(_bar(levels, axis, end) for axis in (1, 2) for end in (0, -1)), strict=True)
    both, whole = np.zeros((len(pictures), 2)), _deviations(pictures)
    for i, (top, bottom, left, right) in enumerate(insides):
        both[i] = spread(pictures[i]), whole[i]
        inside = pictures[i : i + 1, top or None : -bottom or None, left or None : -right or None]
        if top or bottom or left or right:
            # Black with a logo on it looks as if it had bars up to the logo.
            both[i, 1] = min(whole[i], _deviations(inside)[0] if inside.size else np.inf)
    return both


def _deviations(pictures: np.ndarray) -> np.ndarray:
    """1.25 times the mean deviation of each of N H W."""
    return 1.25 * np.abs(pictures - pictures.mean(axis=(1, 2), dtype=np.float32, keepdims=True)).mean(axis=(1, 2))


def _bar(levels: np.ndarray, axis: int, end: int) -> list[int]:
    """How many rows (1) or columns (2) of each of N H W are of one level, counted from the first (0) or last (-1)."""
    plain = (np.abs(levels - levels[:, end, end, None, None]) <= _BAR).all(axis=3 - axis)
    depth = np.argmin(plain[:, ::-1] if end else plain, axis=1)  # of a plain picture: 0, nothing is left out
    return (depth + (depth > 0)).tolist()  # the next one may be partly of the bar


def colour_distance(a: Look, b: Look) -> float:
    """From 0 (the same colours) to 1 (none in common)."""
    return 1.0 - float(np.minimum(a.colours, b.colours).sum())


def hue_distance(a: Look, b: Look) -> float:
    """As ``colour_distance``, whatever the light."""
    return 1.0 - float(np.minimum(a.hues, b.hues).sum())


def relit(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the change between two pictures that is left if one is the other in another light, 0..1.

    ``... 3``; each channel is brighter or darker by its own factor.
    """
    p, q = (np.asarray(picture, np.float64).reshape(-1, 3) for picture in (a, b))
    pp, qq, pq = ((s * t).sum(axis=0) for s, t in ((p, p), (q, q), (p, q)))
    change = float((pp + qq - 2 * pq).sum()) + 1.0
    left = []
    for source, target in ((pp, qq), (qq, pp)):
        gain = pq / (source + 1.0)
        left.append(float((target - 2 * gain * pq + gain * gain * source).sum()))
    return max(min(left), 0.0) / change


def same_structure(a: Look, b: Look) -> float:
    """Correlation of the middle of one picture with the best place for it in the other: 1 for the same, -1 for nothing.

    Brightness, exposure and a camera that moved by up to a sixth of the picture make no difference.
    """
    best = -1.0
    for inner, outer in ((a.structure, b.structure), (b.structure, a.structure)):
        middle = inner[6:-6, 11:-11]
        if spread(middle) >= 0.05:
            best = max(best, float(cv2.matchTemplate(outer, middle, cv2.TM_CCOEFF_NORMED).max()))
    return best


def same_tiles(a: Look, b: Look) -> float:
    """Share of the textured tiles of one picture that are found again near their place in the other, 0..1."""
    return max(_found_again(a, b), _found_again(b, a))


def _found_again(a: Look, b: Look) -> float:
    width, height = _TILE
    around = cv2.copyMakeBorder(b.structure, 4, 4, 6, 6, cv2.BORDER_CONSTANT, value=0)
    places = np.lib.stride_tricks.sliding_window_view(around, (height, width))
    textured = found = 0
    for y in range(0, SIZE[1], height):
        for x in range(0, SIZE[0], width):
            if spread(a.luma[y : y + height, x : x + width]) < 4:
                continue
            tile = a.structure[y : y + height, x : x + width].ravel()
            tile = tile - tile.mean()
            nearby = places[y : y + 9, x : x + 13].reshape(-1, tile.size)  # at most 4 rows and 6 columns away
            power = np.einsum("pk,pk->p", nearby, nearby) - np.square(nearby.sum(axis=1)) / tile.size
            match = nearby @ tile / np.sqrt(np.maximum(power, 1e-3) * float(tile @ tile) + 1e-6)
            textured += 1
            found += float(match.max()) > _TILE_IS_SAME
    return found / textured if textured >= 3 else 0.0


_Y, _X = np.mgrid[0 : SIZE[1], 0 : SIZE[0]].astype(np.float32)


@functools.cache
def _flow() -> cv2.DISOpticalFlow:
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow.setVariationalRefinementIterations(0)
    flow.setFinestScale(0)
    return flow


def moved_structure(a: Look, b: Look) -> tuple[float, float]:
    """Mean change of structure from a look to the next: what is left when motion is taken out, and all of it."""
    if b.since is None:
        before, after = a.relief, b.relief
        flow = _flow().calc(after, before, None)
        moved = cv2.remap(
            before, _X + flow[..., 0], _Y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        left, change = (cv2.norm(after, other, cv2.NORM_L1) / after.size for other in (moved, before))
        b.since = left, change
    return b.since


def mixture_fit(a: Look, middle: Look, b: Look) -> float:
    """How much of the fine detail of ``middle`` is a sum of that of a and b: 1 for a dissolve at rest, 0 for none."""
    p, m, q = (look.detail for look in (a, middle, b))
    pp, qq, mm, pq, pm, qm = (float(s @ t) for s, t in ((p, p), (q, q), (m, m), (p, q), (p, m), (q, m)))
    pp, qq = pp + 1.0, qq + 1.0
    square = pp * qq - pq * pq
    u, v = (min(max(over / square, 0.0), 1.2) for over in (pm * qq - qm * pq, qm * pp - pm * pq))
    left = mm - 2 * (u * pm + v * qm) + u * u * pp + v * v * qq + 2 * u * v * pq
    return 1.0 - left / (mm + 1.0)
