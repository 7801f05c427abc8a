"""Painted worlds of many looks for a camera to move over. Pictures are H W 3 BGR uint8, drawn from ``random`` alone."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Size = tuple[int, int]  # width, height in pixels
WORDS = [
    "breaking",
    "news",
    "tonight",
    "the",
    "river",
    "market",
    "sale",
    "1984",
    "chapter",
    "two",
    "3:1",
    "home",
    "end",
]


def octaves(
    random: np.random.Generator, size: Size, *, coarsest: int = 3, count: int = 5, stretch: float = 1.0
) -> np.ndarray:
    """Noise at several scales, H W float32 from 0 to 1; ``stretch`` above 1 draws it out sideways."""
    width, height = size
    total = np.zeros((height, width), np.float32)
    for k in range(count):
        rows = min(height, coarsest * 2**k)
        columns = max(2, int(rows * width / height / stretch))
        grid = random.random((rows, columns), np.float32)
        total += 0.6**k * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.normalize(total, None, 0.0, 1.0, cv2.NORM_MINMAX))


def palette(random: np.random.Generator, count: int = 4) -> np.ndarray:
    """``count`` BGR colours that go together, from dark to light: N 3 uint8."""
    hue, spread = random.integers(180), random.choice([8, 30, 90])
    saturation = random.choice([0, 60, 130, 220])
    values = np.sort(random.integers(15, 250, count))
    hues = (hue + random.integers(-spread, spread + 1, count)) % 180
    hsv = np.stack([hues, np.clip(saturation + random.integers(-40, 40, count), 0, 255), values], axis=1)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2BGR)[0])


def coloured(shade: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A map H W from 0 to 1 in a gradient through ``colours``."""
    places = np.linspace(0, len(colours) - 1, 256)
    table = np.stack([np.interp(places, np.arange(len(colours)), colours[:, c]) for c in range(3)], axis=1)
    return np.asarray(cv2.applyColorMap((shade * 255).astype(np.uint8), table.astype(np.uint8)[:, None]))


def a_colour(random: np.random.Generator, colours: np.ndarray, spread: int = 25) -> tuple[int, ...]:
    """One of ``colours``, a little off."""
    picked = colours[random.integers(len(colours))].astype(int) + random.integers(-spread, spread + 1, 3)
    return tuple(int(c) for c in np.clip(picked, 0, 255))


def _clouds(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    return coloured(octaves(random, size, coarsest=int(random.integers(2, 6))), colours)


def _sand(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    return coloured(octaves(random, size, coarsest=int(random.integers(16, 40)), count=3), colours)


def _sea(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    return coloured(octaves(random, size, coarsest=12, count=4, stretch=6.0), colours)


def _mountains(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = coloured(octaves(random, size, coarsest=2, count=3) * 0.3 + 0.7, colours)
    for layer in range(4):
        ridge = octaves(random, (width, 2), coarsest=1, count=1)[0] if layer == 0 else np.zeros(width, np.float32)
        rough = cv2.resize(random.random((1, 12 * 2**layer), np.float32), (width, 1), interpolation=cv2.INTER_CUBIC)[0]
        top = (0.3 + 0.16 * layer + 0.25 * (rough - 0.5) + 0.1 * ridge) * height
        ground = coloured(octaves(random, size, coarsest=10, count=4) * 0.4 + 0.15 * (3 - layer), colours)
        below = np.arange(height)[:, None] > top[None]
        picture[below] = ground[below]
    return picture


def _city(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = coloured(np.linspace(1, 0.4, height, dtype=np.float32)[:, None].repeat(width, 1), colours)
    unit = height // 30
    for x in range(0, width, unit * 6):
        top, broad = int(random.integers(height // 8, height * 3 // 4)), int(random.integers(4, 9)) * unit
        cv2.rectangle(picture, (x, top), (x + broad, height), a_colour(random, colours), -1)
        pane = a_colour(random, colours, 60)
        for y in range(top + unit, height, unit * 2):
            for column in range(x + unit // 2, x + broad - unit, unit * 2):
                if random.random() < 0.7:
                    cv2.rectangle(picture, (column, y), (column + unit, y + unit), pane, -1)
    return picture


def _tiles(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    cell = int(random.integers(height // 24, height // 5))
    y, x = np.mgrid[:height, :width]
    turn = random.uniform(0, np.pi)
    u, v = (x * np.cos(turn) + y * np.sin(turn)) // cell, (y * np.cos(turn) - x * np.sin(turn)) // cell
    values = random.random((64, 64), np.float32) if random.random() < 0.5 else np.indices((64, 64)).sum(0) % 2
    shade = values[(u % 64).astype(int), (v % 64).astype(int)].astype(np.float32)
    return coloured(np.clip(0.75 * shade + 0.25 * octaves(random, size, coarsest=6), 0, 1), colours)


def _page(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    dark = random.random() < 0.3
    picture = np.full((height, width, 3), 25 if dark else 240, np.uint8)
    ink, line = (
        a_colour(random, colours[-1:] if dark else colours[:1]),
        int(random.integers(height // 30, height // 10)),
    )
    for y in range(line, height, int(line * 1.5)):
        text = " ".join(random.choice(WORDS, 60))
        cv2.putText(picture, text, (-line, y), cv2.FONT_HERSHEY_SIMPLEX, line / 30, ink, max(1, line // 14))
        if random.random() < 0.15:
            start = int(random.integers(width * 3 // 4))
            cv2.rectangle(picture, (start, y), (start + width // 5, y + 4 * line), a_colour(random, colours), -1)
    return picture


def _cells(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    small = (size[0] // 4, size[1] // 4)
    seeds = random.random((int(random.integers(15, 90)), 2)) * small
    y, x = np.mgrid[: small[1], : small[0]].astype(np.float32)
    owner = np.argmin([(x - sx) ** 2 + (y - sy) ** 2 for sx, sy in seeds], axis=0).astype(np.uint8)
    table = np.array([a_colour(random, colours) for _ in range(256)], np.uint8)
    return np.asarray(cv2.resize(table[owner], size, interpolation=cv2.INTER_NEAREST))


def strokes(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    """Leaves and grass."""
    width, height = size
    picture = _clouds(random, size, colours)
    count = int(random.integers(width // 4, width))
    at = random.integers((0, 0), size, (count, 2)).tolist()
    axes = random.integers((2, 1), (4 + height // 12, 2 + height // 40), (count, 2)).tolist()
    angles, inks = random.uniform(0, 180, count).tolist(), [a_colour(random, colours) for _ in range(12)]
    for k in range(count):
        cv2.ellipse(picture, at[k], axes[k], angles[k], 0, 360, inks[k % 12], -1)
    return picture


def _bokeh(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = (_clouds(random, size, colours) * 0.4).astype(np.uint8)
    for _ in range(int(random.integers(30, 150))):
        at = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(picture, at, int(random.integers(3, height // 8)), a_colour(random, colours, 60), -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), float(random.uniform(0.5, 6))))


def _crowd(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = cv2.GaussianBlur(_clouds(random, size, colours), (0, 0), 4)
    step = int(random.integers(height // 14, height // 4))
    for y in range(step // 2, height + step, step):
        for x in range(0, width, step):
            draw_face(random, picture, (x + int(random.integers(step // 2)), y), step // 3, a_colour(random, colours))
    return np.asarray(picture)


def draw_face(
    random: np.random.Generator, picture: np.ndarray, at: tuple[int, int], radius: int, coat: tuple[int, ...]
) -> None:
    """Head and shoulders, roughly, drawn into ``picture``."""
    tone = float(random.uniform(0.3, 1.0))
    skin = (int(140 * tone), int(180 * tone), int(235 * tone))
    x, y = at
    cv2.ellipse(picture, (x, y + 2 * radius), (2 * radius, radius), 0, 0, 360, coat, -1, cv2.LINE_AA)
    cv2.ellipse(picture, at, (int(radius * 0.8), radius), 0, 0, 360, skin, -1, cv2.LINE_AA)
    hair = tuple(int(c) for c in random.integers(10, 90, 3))
    cv2.ellipse(picture, (x, y - radius // 3), (int(radius * 0.85), int(radius * 0.8)), 0, 180, 360, hair, -1)
    for side in (-1, 1):
        cv2.circle(picture, (x + side * radius // 3, y), max(1, radius // 9), (20, 20, 20), -1, cv2.LINE_AA)
    cv2.ellipse(picture, (x, y + radius // 2), (radius // 3, max(1, radius // 10)), 0, 0, 360, (60, 60, 150), -1)


def _rooms(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = np.full((height, width, 3), a_colour(random, colours), np.uint8)
    for _ in range(int(random.integers(8, 40))):  # large flat areas, lit from one side
        corners = random.integers((0, 0), (width, height), 2)
        shape = corners + random.integers(-height // 3, height // 3, (4, 2))
        cv2.fillConvexPoly(picture, cv2.convexHull(shape.astype(np.int32)), a_colour(random, colours), cv2.LINE_AA)
    light = octaves(random, size, coarsest=1, count=2) * 0.6 + 0.4
    return np.asarray(picture * light[..., None]).astype(np.uint8)


def _night(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = (_city(random, size, colours) * 0.12).astype(np.uint8)
    for _ in range(int(random.integers(40, 200))):
        at = (int(random.integers(width)), int(random.integers(height)))
        lamp = tuple(int(c) for c in np.clip(a_colour(random, colours) + random.integers(0, 160, 3), 60, 255))
        cv2.circle(picture, at, int(random.integers(1, 4)), lamp, -1, cv2.LINE_AA)
    return picture


TEXTURES: dict[str, Callable[[np.random.Generator, Size, np.ndarray], np.ndarray]] = {
    "clouds": _clouds,
    "sand": _sand,
    "sea": _sea,
    "mountains": _mountains,
    "city": _city,
    "tiles": _tiles,
    "page": _page,
    "cells": _cells,
    "strokes": strokes,
    "bokeh": _bokeh,
    "crowd": _crowd,
    "rooms": _rooms,
    "night": _night,
}
