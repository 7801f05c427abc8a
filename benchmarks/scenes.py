"""Moving pictures of many looks for measuring shot detection: painted worlds, a camera that moves over them, things
that move in front of it. Pictures are H W 3 BGR uint8; everything follows from the random generator it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

Size = tuple[int, int]  # width, height in pixels
Effect = Callable[[np.ndarray, int], np.ndarray]  # (picture, index of the frame in its take) -> picture
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


def _colour(random: np.random.Generator, colours: np.ndarray, spread: int = 25) -> tuple[int, ...]:
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
        cv2.rectangle(picture, (x, top), (x + broad, height), _colour(random, colours), -1)
        pane = _colour(random, colours, 60)
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
    ink, line = _colour(random, colours[-1:] if dark else colours[:1]), int(random.integers(height // 30, height // 10))
    for y in range(line, height, int(line * 1.5)):
        text = " ".join(random.choice(WORDS, 60))
        cv2.putText(picture, text, (-line, y), cv2.FONT_HERSHEY_SIMPLEX, line / 30, ink, max(1, line // 14))
        if random.random() < 0.15:
            start = int(random.integers(width * 3 // 4))
            cv2.rectangle(picture, (start, y), (start + width // 5, y + 4 * line), _colour(random, colours), -1)
    return picture


def _cells(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    small = (size[0] // 4, size[1] // 4)
    seeds = random.random((int(random.integers(15, 90)), 2)) * small
    y, x = np.mgrid[: small[1], : small[0]].astype(np.float32)
    owner = np.argmin([(x - sx) ** 2 + (y - sy) ** 2 for sx, sy in seeds], axis=0).astype(np.uint8)
    table = np.array([_colour(random, colours) for _ in range(256)], np.uint8)
    return np.asarray(cv2.resize(table[owner], size, interpolation=cv2.INTER_NEAREST))


def _strokes(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = _clouds(random, size, colours)
    for _ in range(int(random.integers(width // 4, width))):  # leaves, grass
        at = (int(random.integers(width)), int(random.integers(height)))
        axes = (int(random.integers(2, 4 + height // 12)), int(random.integers(1, 2 + height // 40)))
        cv2.ellipse(picture, at, axes, float(random.uniform(0, 180)), 0, 360, _colour(random, colours), -1)
    return picture


def _bokeh(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = (_clouds(random, size, colours) * 0.4).astype(np.uint8)
    for _ in range(int(random.integers(30, 150))):
        at = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(picture, at, int(random.integers(3, height // 8)), _colour(random, colours, 60), -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), float(random.uniform(0.5, 6))))


def _crowd(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = cv2.GaussianBlur(_clouds(random, size, colours), (0, 0), 4)
    step = int(random.integers(height // 14, height // 4))
    for y in range(step // 2, height + step, step):
        for x in range(0, width, step):
            draw_face(random, picture, (x + int(random.integers(step // 2)), y), step // 3, _colour(random, colours))
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
    picture = np.full((height, width, 3), _colour(random, colours), np.uint8)
    for _ in range(int(random.integers(8, 40))):  # large flat areas, lit from one side
        corners = random.integers((0, 0), (width, height), 2)
        shape = corners + random.integers(-height // 3, height // 3, (4, 2))
        cv2.fillConvexPoly(picture, cv2.convexHull(shape.astype(np.int32)), _colour(random, colours), cv2.LINE_AA)
    light = octaves(random, size, coarsest=1, count=2) * 0.6 + 0.4
    return np.asarray(picture * light[..., None]).astype(np.uint8)


def _night(random: np.random.Generator, size: Size, colours: np.ndarray) -> np.ndarray:
    width, height = size
    picture = (_city(random, size, colours) * 0.12).astype(np.uint8)
    for _ in range(int(random.integers(40, 200))):
        at = (int(random.integers(width)), int(random.integers(height)))
        lamp = tuple(int(c) for c in np.clip(_colour(random, colours) + random.integers(0, 160, 3), 60, 255))
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
    "strokes": _strokes,
    "bokeh": _bokeh,
    "crowd": _crowd,
    "rooms": _rooms,
    "night": _night,
}


@dataclasses.dataclass
class Thing:
    """A sprite that moves in front of the camera, to and fro between the edges."""

    picture: np.ndarray  # S S 3
    opacity: np.ndarray  # S S float32
    start: np.ndarray  # middle in px
    speed: np.ndarray  # px per frame

    def draw(self, frame: np.ndarray, i: int) -> None:
        height, width = frame.shape[:2]
        span = np.array([width, height], np.float64)
        along = (self.start + self.speed * i) % (2 * span)
        paste(frame, self.picture, self.opacity, at=np.where(along > span, 2 * span - along, along))


def paste(frame: np.ndarray, picture: np.ndarray, opacity: np.ndarray, *, at: np.ndarray) -> None:
    """Draw ``picture`` H W 3 into ``frame`` with its middle at ``at`` (x, y)."""
    rows, columns = picture.shape[:2]
    left, top = round(float(at[0]) - columns / 2), round(float(at[1]) - rows / 2)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + columns, frame.shape[1]), min(top + rows, frame.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    over = opacity[inside]
    frame[y0:y1, x0:x1] = cv2.blendLinear(frame[y0:y1, x0:x1].copy(), picture[inside].copy(), 1 - over, over.copy())


def make_thing(random: np.random.Generator, size: Size, *, share: float | None = None) -> Thing:
    """A person, a ball or a textured blot; ``share`` is its size in frame heights."""
    side = max(12, int(size[1] * (share or random.uniform(0.12, 0.55))))
    colours, opacity = palette(random), np.zeros((side, side), np.uint8)
    picture = _strokes(random, (side * 2, side * 2), colours)[:side, :side].copy()
    if random.random() < 0.4:
        draw_face(random, picture, (side // 2, side // 3), side // 4, _colour(random, colours))
        cv2.ellipse(opacity, (side // 2, side // 3), (side // 4, side // 3), 0, 0, 360, 255, -1)
        cv2.ellipse(opacity, (side // 2, side * 5 // 6), (side // 2, side // 4), 0, 0, 360, 255, -1)
    else:
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        around = side / 2 + side / 2 * random.uniform(0.5, 1.0, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(opacity, [around.astype(np.int32)], 255)
    soft = cv2.GaussianBlur(opacity, (0, 0), max(0.5, side / 60)).astype(np.float32) / 255
    speed = random.uniform(-0.012, 0.012, 2) * size
    return Thing(picture, soft, random.random(2) * size, speed)


@dataclasses.dataclass
class Take:
    """What one camera saw: frame by frame, without a cut.

    Attributes:
        world: the painted surroundings.
        path: N 4, for each frame the middle of the view (x, y in px of the world), the scale (px of the world per px of
            the frame) and the roll in degrees.
    """

    size: Size
    world: np.ndarray
    path: np.ndarray
    things: list[Thing] = dataclasses.field(default_factory=list)
    effects: list[Effect] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.path)

    def frame(self, i: int) -> np.ndarray:
        x, y, scale, roll = self.path[i]
        cos, sin = scale * np.cos(np.radians(roll)), scale * np.sin(np.radians(roll))
        w, h = self.size[0] / 2, self.size[1] / 2
        view = np.array([[cos, -sin, x - cos * w + sin * h], [sin, cos, y - sin * w - cos * h]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(self.world, view, self.size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        moved = np.abs(self.path[i, :2] - self.path[max(0, i - 1), :2]) / scale
        if moved.max() > 0.03 * self.size[0]:  # the shutter is open for half of the time
            frame = cv2.blur(frame, (max(1, int(moved[0] / 2)), max(1, int(moved[1] / 2))))
        for thing in self.things:
            thing.draw(frame, i)
        for effect in self.effects:
            frame = effect(frame, i)
        return np.asarray(frame)


def there_and_back(values: np.ndarray, span: float) -> np.ndarray:
    """``values`` folded into 0 .. ``span``."""
    along = np.mod(values, 2 * span)
    return np.asarray(np.where(along > span, 2 * span - along, along))


def sway(random: np.random.Generator, count: int, every: float) -> np.ndarray:
    """Smooth wandering between -1 and 1, with a new aim every so many frames."""
    aims = random.uniform(-1, 1, int(count / every) + 4).astype(np.float32)
    fine = cv2.resize(aims[None], (max(2, int(len(aims) * every)), 1), interpolation=cv2.INTER_CUBIC)[0]
    return np.asarray(fine[int(every) :][:count], np.float64)


def roam(
    random: np.random.Generator,
    size: Size,
    world: Size,
    *,
    count: int,
    fps: int,
    speed: tuple[float, float] | None = None,
) -> np.ndarray:
    """A path N 4 as ``Take`` wants it; ``speed`` in frame widths and heights per second, None draws a calm move."""
    kind = random.choice(["static", "pan", "tilt", "drift", "zoom", "handheld", "roll"])
    if speed is not None:
        kind = "drift"
    pace = np.array(speed if speed is not None else random.uniform(-0.3, 0.3, 2))
    pace = pace * {"pan": (1, 0), "tilt": (0, 1), "drift": (1, 1)}.get(str(kind), (0.03, 0.03))
    t = np.arange(count)
    room = np.maximum(np.array(world) - size, 1)
    path = np.zeros((count, 4))
    for axis in (0, 1):
        start = random.uniform(0, 2 * room[axis])
        path[:, axis] = size[axis] / 2 + there_and_back(start + pace[axis] * size[axis] / fps * t, float(room[axis]))
    path[:, 2] = random.uniform(0.6, 1.1)
    if kind == "zoom":
        path[:, 2] *= np.exp(random.choice([-1, 1]) * random.uniform(0.05, 0.3) * there_and_back(t / fps, 3.0))
    if kind == "handheld":
        path[:, 0] += 0.02 * size[0] * sway(random, count, fps / 4)
        path[:, 1] += 0.02 * size[1] * sway(random, count, fps / 4)
    path[:, 3] = 3 * sway(random, count, fps) if kind in ("handheld", "roll") else random.uniform(-2, 2)
    return path


def make_take(
    random: np.random.Generator,
    size: Size,
    *,
    count: int,
    fps: int,
    texture: str | None = None,
    colours: np.ndarray | None = None,
    speed: tuple[float, float] | None = None,
    brightness: float = 1.0,
    plain: bool = False,
) -> Take:
    """A take of ``count`` frames of something; what is not given is drawn.

    Args:
        texture: one of TEXTURES.
        colours: of the world, as ``palette`` gives them.
        speed: of the camera in frame widths and heights per second; None draws a calm move.
        brightness: everything is multiplied by this; below 0.25 it is a dark scene.
        plain: no objects, no grading.
    """
    extent = (size[0] * 3, size[1] * 3)
    name = texture or str(random.choice(list(TEXTURES)))
    world = TEXTURES[name](random, extent, palette(random) if colours is None else colours)
    if random.random() < 0.5:  # something to hold on to where the texture is the same everywhere
        for _ in range(12):
            thing = make_thing(random, size)
            paste(world, thing.picture, thing.opacity, at=random.random(2) * extent)
    take = Take(size, world, roam(random, size, extent, count=count, fps=fps, speed=speed))
    if not plain:
        take.things = [make_thing(random, size) for _ in range(random.integers(0, 4))]
        if random.random() < 0.4:
            take.effects.append(graded(random.uniform(0.6, 1.3), gamma=random.uniform(0.7, 1.4)))
        if random.random() < 0.4:
            take.effects.append(grainy(random, size, random.uniform(1, 7)))
    if brightness < 1:
        take.effects += [graded(brightness), grainy(random, size, random.uniform(0.5, 2.5))]
    return take


def graded(gain: float, *, gamma: float = 1.0) -> Effect:
    table = np.clip(255 * gain * (np.arange(256) / 255) ** gamma, 0, 255).astype(np.uint8)
    return lambda frame, i: np.asarray(cv2.LUT(frame, table))


def grainy(random: np.random.Generator, size: Size, sigma: float) -> Effect:
    """Film grain: another field of noise for each frame, drawn from a few that are shifted."""
    width, height = size
    fields = [np.clip(random.normal(128, sigma, (height * 2, width * 2, 1)), 0, 255).astype(np.uint8) for _ in range(3)]
    fields = [np.repeat(field, 3, axis=2) for field in fields]
    shifts = random.integers(0, (height, width), (997, 2))

    def add(frame: np.ndarray, i: int) -> np.ndarray:
        y, x = shifts[i % 997]
        field = fields[i % 3][y : y + height, x : x + width]
        return np.asarray(cv2.addWeighted(frame, 1, field, 1, -128))

    return add
