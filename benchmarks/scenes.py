"""Takes for measuring shot detection: a camera that moves over a painted world, things that move in front of it.

Pictures are H W 3 BGR uint8; everything follows from the random generator it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from benchmarks.worlds import TEXTURES, Size, a_colour, draw_face, palette, strokes

Effect = Callable[[np.ndarray, int], np.ndarray]  # (picture, index of the frame in its take) -> picture


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
    picture = strokes(random, (side * 2, side * 2), colours)[:side, :side].copy()
    if random.random() < 0.4:
        draw_face(random, picture, (side // 2, side // 3), side // 4, a_colour(random, colours))
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
