"""Clips made by a camera that moves as told over painted ground, as the decode pass would give them to a filter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import cv2
import numpy as np

from curation.painting import paint

# Of the picture: x, y (heights a second), zoom (1 / s), roll (rad / s, clockwise).
Rates = tuple[float, float, float, float]
GROUNDS = ("green meadow", "blue sky", "desert", "grey harbour", "faint", "shapes", "bricks", "horizon")
_SIZE = 1280, 720


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """An ellipse with a texture of its own: share of the picture, middle after two seconds (0..1), heights a second."""

    area: float
    x: float = 0.5
    y: float = 0.5
    speed: tuple[float, float] = (0.2, 0.0)
    seed: int = 0


def ground(kind: str, seed: int) -> np.ndarray:
    """A grey picture of 1280x720 to move over."""
    random = np.random.default_rng(seed)
    if kind == "shapes":
        return _shapes(random)
    if kind == "bricks":
        return _bricks(random)
    plain = cv2.cvtColor(
        paint(*_SIZE, kind if " " in kind or kind == "desert" else "grey harbour", seed), cv2.COLOR_RGB2GRAY
    )
    if kind == "faint":  # a quarter of the contrast
        return np.asarray((plain - plain.mean()) / 4 + plain.mean()).astype(np.uint8)
    if kind == "horizon":  # an empty sky
        plain = cv2.addWeighted(plain, 0.5, _shapes(random), 0.5, 0)
        plain[: _SIZE[1] // 2] = np.linspace(230, 210, _SIZE[1] // 2)[:, None]
    return plain


def _shapes(random: np.random.Generator) -> np.ndarray:
    picture = np.full(_SIZE[::-1], random.integers(60, 200), np.uint8)
    for _ in range(220):
        x, y, size, grey = (int(random.integers(top)) for top in (*_SIZE, 60, 256))
        if random.random() < 0.5:
            cv2.circle(picture, (x, y), size + 8, grey, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(picture, (x, y), (x + size + 8, y + int(random.integers(8, 90))), grey, -1)
    return picture


def _bricks(random: np.random.Generator) -> np.ndarray:
    picture = np.full(_SIZE[::-1], 150, np.uint8)
    high, wide = int(random.integers(30, 60)), int(random.integers(70, 140))
    for row, y in enumerate(range(0, _SIZE[1], high)):
        for x in range(-wide + row % 2 * wide // 2, _SIZE[0], wide):
            cv2.rectangle(picture, (x + 3, y + 3), (x + wide - 3, y + high - 3), int(random.integers(70, 140)), -1)
    return picture


def film(
    world: np.ndarray,
    rates: Callable[[float], Rates],
    *,
    fps: float = 24.0,
    seconds: float = 3.0,
    height: int = 360,
    noise: float = 0.0,
    thing: Thing | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames T 54 96 and their times on the motion filter's grid, from pictures of ``height`` at ``fps``."""
    random, width = np.random.default_rng(1), height * 16 // 9
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    view = np.eye(3)  # from the picture to the world, which is reflected at its edges
    view[:2] *= 360 / height
    view[:2, 2] = (np.array(_SIZE) - (640, 360)) / 2
    frames, times, next_s = [], [], 0.0
    for i in range(round(fps * seconds)):
        t = i / fps
        if t > next_s - 1e-6:
            next_s = (math.floor(t * 8 + 1e-6) + 1) / 8
            how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            picture = cv2.warpAffine(world, view[:2], (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101)
            picture = _with(picture, thing, t) if thing else picture
            if noise:
                grain = random.standard_normal(picture.shape, np.float32) * noise
                picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
            frames.append(cv2.resize(picture, (96, 54), interpolation=cv2.INTER_AREA))
            times.append(t)
        x, y, zoom, roll = (rate / fps for rate in rates(t))
        step = np.eye(3)
        step[:2, :2] = math.exp(zoom) * np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
        step[:2, 2] = middle + np.array([x, y]) * height - step[:2, :2] @ middle
        view = view @ np.linalg.inv(step)
    return np.stack(frames), np.array(times)


def _with(picture: np.ndarray, thing: Thing, t: float) -> np.ndarray:
    height, width = picture.shape
    radii = math.sqrt(thing.area * width * height / math.pi) * np.array([1.2, 1 / 1.2])
    at = np.array([thing.x * width, thing.y * height]) + (t - 2) * height * np.array(thing.speed)
    skin = cv2.resize(_shapes(np.random.default_rng(thing.seed))[:320, :320], (width, height))
    move = np.array([[1, 0, at[0] - width / 2], [0, 1, at[1] - height / 2]], np.float64)
    mask = np.zeros_like(picture)
    cv2.ellipse(mask, (width // 2, height // 2), tuple(radii.astype(int).tolist()), 0, 0, 360, 255, -1)
    skin, mask = (cv2.warpAffine(layer, move, (width, height)) for layer in (skin, mask))
    return np.where(mask > 127, skin, picture)
