"""A teacher for the generated world: three small functions in place of version 1's three models.

It knows the tones, the shapes and the words of the world, and of a clip only what a model would get: ``frame`` one
picture, ``motion`` the pictures of a clip, ``summary`` the text of the prompt with the others' notes. In a pipeline
they are named ``captioning.teacher:frame`` and so on.

H, W pixels; pictures are H W 3 RGB.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import cv2
import numpy as np

from captioning.requests import Request
from captioning.world import CAMERAS, DIRECTIONS, SHAPES, TONES, silhouette
from curation.painting import BACKGROUNDS

_LIGHT = (0.88, 1.07)  # the colour of a shape, brighter or darker
_SIZES = (0.36, 0.40, 0.44)  # of the height, from the middle of a shape to its outline
_FOOT = 0.84  # letters stand on a dark band from here down
_DARK = 60
_LEAST = 0.008  # of the picture must have a shape's colour
_FASTEST_PAN = 0.1  # of the width from frame to frame


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What one picture shows. ``at``: x and y of the middle of the shape, px."""

    background: str
    colour: str | None
    shape: str | None
    at: tuple[int, int]
    letters: bool
    bare: np.ndarray  # H W bool: background, covered by nothing


def frame(request: Request) -> str:
    """A caption of one picture: "A red circle before a desert. There is text."."""
    seen = _look(request.images[0])
    what = f"A {seen.colour} {seen.shape} before a {seen.background}." if seen.shape else f"A {seen.background}."
    return f"{what} There is text." if seen.letters else what


def motion(request: Request) -> str:
    """Where the shape of a clip goes, and the camera: "It moves left. The camera pans right."."""
    pictures = [_picture(jpeg) for jpeg in request.images]
    seen = [_look(jpeg) for jpeg in request.images]
    said = [f"It moves {_direction(seen, pictures[0].shape[0])}."]
    camera = _camera(pictures, seen)
    return " ".join(said if camera == "static" else [*said, f"The camera {camera}."])


def summary(request: Request) -> str:
    """One caption from the notes in a prompt, in the words of the world. Where they differ, most of them are right."""
    notes = request.prompt
    looks = re.findall(r": A (\w+) (\w+) before a ([\w ]+)\.", notes)
    moves, camera = re.search(r"It moves (\w+)\.", notes), re.search(r"The camera (pans \w+)\.", notes)
    if not looks or not moves:
        raise ValueError("the notes say of no shape how it looks and moves")
    colour, shape, background = (_most(words) for words in zip(*looks, strict=True))
    words = [f"A {colour} {shape} moves {moves[1]} across a {background}."]
    words += [f"The camera {camera[1]}."] if camera else []
    words += ["There is text."] if 2 * notes.count("There is text.") > len(looks) else []
    return " ".join(words)


def _most(words: Sequence[str]) -> str:
    return collections.Counter(words).most_common(1)[0][0]


def _picture(jpeg: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("a frame of the contact sheet cannot be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


@functools.lru_cache(maxsize=64)  # frames that are described are asked about again, for the motion
def _look(jpeg: bytes) -> _Seen:
    picture = _picture(jpeg)
    foot = round(_FOOT * picture.shape[0])
    letters = bool(np.median(picture[foot:]) < _DARK)
    free = np.ones(picture.shape[:2], bool)
    if letters:
        free[foot - 1 :] = False
    grounds = {name: _distance(picture, *tones) for name, tones in BACKGROUNDS.items()}
    colours = {name: _distance(picture, *np.outer(_LIGHT, tone)) for name, tone in TONES.items()}
    names = [*grounds, *colours]
    nearest = np.argmin([*grounds.values(), *colours.values()], axis=0)
    counts = dict(zip(names, np.bincount(nearest[free], minlength=len(names)), strict=True))
    background, colour = max(grounds, key=lambda name: counts[name]), max(colours, key=lambda name: counts[name])
    if counts[colour] < _LEAST * free.size:
        return _Seen(background, None, None, (0, 0), letters, free)
    mask = free & (colours[colour] < grounds[background])
    shape, at = _fit(mask, free)
    around = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return _Seen(background, colour, shape, at, letters, free & ~around)


def _distance(picture: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """How far each pixel is from the tones between two, H W."""
    start, way = np.array(low, np.float32), np.array(high, np.float32) - np.array(low, np.float32)
    along = np.clip((picture - start) @ way / (way @ way), 0, 1)[..., None]
    return np.asarray(np.linalg.norm(picture - (start + along * way), axis=2))


def _fit(mask: np.ndarray, free: np.ndarray) -> tuple[str, tuple[int, int]]:
    """The shape, and its place on the torus, that differs from a mask in the fewest pixels that can be seen."""
    names, patterns = _patterns(mask.shape[0])
    gain = np.where(free, 1.0 - 2.0 * mask, 0.0)  # a pixel that the shape covers costs 1, or saves 1 where it is due
    costs = np.fft.irfft2(np.fft.rfft2(gain) * patterns, s=mask.shape)  # N H W
    best, y, x = (int(i) for i in np.unravel_index(costs.argmin(), costs.shape))
    return names[best], (x, y)


@functools.lru_cache(maxsize=4)
def _patterns(side: int) -> tuple[list[str], np.ndarray]:
    """The shapes in several sizes, ready to be compared at all places at once: names and N H W/2+1 complex."""
    kinds = [(shape, size) for shape in SHAPES for size in _SIZES]
    masks = np.stack([silhouette(shape, round(size * side), side) for shape, size in kinds])
    return [shape for shape, _ in kinds], np.conj(np.fft.rfft2(masks))


def _direction(seen: Sequence[_Seen], side: int) -> str:
    places = np.array([look.at for look in seen if look.shape], np.float64)
    if len(places) < 2:
        raise ValueError("no shape can be followed")
    steps = (np.diff(places, axis=0) + side / 2) % side - side / 2  # the short way round
    step = np.median(steps, axis=0)
    return max(DIRECTIONS, key=lambda name: float(step @ np.array(DIRECTIONS[name])))


def _camera(pictures: Sequence[np.ndarray], seen: Sequence[_Seen]) -> str:
    """Which way the background goes from frame to frame, as far as it can be seen."""
    most = round(_FASTEST_PAN * pictures[0].shape[1])
    costs = {}
    for shift in range(-most, most + 1):
        moved = [np.roll(picture, shift, 1).astype(np.float32) for picture in pictures[:-1]]
        bare = [np.roll(look.bare, shift, 1) & after.bare for look, after in itertools.pairwise(seen)]
        gaps = [np.abs(a - b)[m] for a, b, m in zip(moved, pictures[1:], bare, strict=True)]
        costs[shift] = float(np.concatenate(gaps).mean())
    shift = min(costs, key=lambda shift: costs[shift])
    return next(name for name, way in CAMERAS.items() if way == np.sign(shift))
