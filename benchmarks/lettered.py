"""Pictures and clips with text whose place is known. Pictures are H W 3 RGB uint8, drawn from ``random`` alone.

The letters are those of OpenCV's own fonts.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import cv2
import numpy as np

from benchmarks.worlds import TEXTURES, palette

Size = tuple[int, int]  # width, height in pixels
Kind = Literal["subtitle", "logo", "title", "ticker", "passing sign", "growing sign", "shaken sign"]

OVERLAYS: tuple[Kind, ...] = ("subtitle", "logo", "title", "ticker")
SCENE: tuple[Kind, ...] = ("passing sign", "growing sign", "shaken sign")
SENTENCES = {  # script -> font and lines that the model reads
    "latin": ("sans", ("Breaking news tonight", "the river and the sea", "Chapter two: home", "Open until 21:30")),
    "chinese": ("uni", ("今日新闻报道", "城市交通安全", "欢迎来到北京", "中华人民共和国")),
    "japanese": ("uni", ("こんにちは世界", "東京タワーへ行く", "おはようございます", "新しい本を読む")),
}


@dataclasses.dataclass(frozen=True)
class Box:
    """Left, top, right, bottom in pixels, end exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


def letter(picture: np.ndarray, text: str, at: tuple[int, int], size_px: int, font: str, light: bool = True) -> Box:
    """Write into the picture, with the base line starting at ``at``; return the box around the letters."""
    before = picture.copy()
    colour, shade = ((250, 250, 245), (20, 20, 25)) if light else ((20, 20, 25), (250, 250, 245))
    face = cv2.FontFace(font)
    edge = max(1, size_px // 16)
    cv2.putText(picture, text, (at[0] + edge, at[1] + edge), shade, face, size_px, 500)
    bare = picture.copy()
    cv2.putText(picture, text, at, colour, face, size_px, 500)
    rows, columns = np.nonzero((bare != picture).any(axis=2) | (before != bare).any(axis=2))
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def width_of(text: str, size_px: int, font: str) -> int:
    """How wide the text is in pixels."""
    return int(cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace(font), size_px, 500)[2])


def page(random: np.random.Generator, size: Size, share: float, script: str) -> tuple[np.ndarray, float]:
    """A picture with about ``share`` of its area under lines of text, and the exact share of the boxes around them."""
    width, height = size
    font, sentences = SENTENCES[script]
    for count in range(1, 12):
        lines = [sentences[i % len(sentences)] for i in range(count)]
        widths = [width_of(line, 100, font) / 100 for line in lines]  # per pixel of letter size
        size_px = int(np.sqrt(share * width * height / sum(widths)))
        if max(widths) * size_px < 0.94 * width and 1.45 * size_px * count < 0.94 * height:
            break
    picture, covered = scenery(random, size), 0
    top = int(random.uniform(0.03 * height, 0.97 * height - 1.45 * size_px * count))
    for i, line in enumerate(lines):
        left = int(random.uniform(0.03 * width, 0.97 * width - widths[i] * size_px))
        box = letter(picture, line, (left, top + int(1.45 * size_px * (i + 0.75))), size_px, font)
        covered += (box.x1 - box.x0) * (box.y1 - box.y0)
    return picture, covered / (width * height)


def scenery(random: np.random.Generator, size: Size) -> np.ndarray:
    """A background without text, and without rows of windows, faces or spikes, which pass for it."""
    names = [name for name in TEXTURES if name not in ("page", "city", "tiles", "crowd", "mountains")]
    draw = TEXTURES[str(random.choice(names))]
    return cv2.cvtColor(draw(random, size, palette(random)), cv2.COLOR_BGR2RGB)


def clip(random: np.random.Generator, kind: Kind, *, size: Size = (640, 360), count: int = 8) -> np.ndarray:
    """Frames T H W 3, half a second apart, with text of this kind and a camera that moves."""
    width, height = size
    world = scenery(random, (2 * width, 2 * height))
    if kind in SCENE:
        _put_up_sign(random, world)
    path = _path(random, kind, height, count)
    views = [_view(world, size, left, top, zoom) for left, top, zoom in path]
    if kind in OVERLAYS:
        _lay_over(random, kind, views)
    return np.stack(views)


def _put_up_sign(random: np.random.Generator, world: np.ndarray) -> None:
    """Write on a board in the middle of the world."""
    font, sentences = SENTENCES[str(random.choice(list(SENTENCES)))]
    text, size_px = str(random.choice(sentences)), int(random.integers(20, 40))
    width = width_of(text, size_px, font)
    left, base = world.shape[1] // 2 - width // 2, world.shape[0] // 2
    light = bool(random.integers(2))
    if random.integers(2):
        ink = (40, 50, 70) if light else (225, 220, 200)
        cv2.rectangle(world, (left - 12, base - 2 * size_px), (left + width + 12, base + size_px), ink, -1)
    letter(world, text, (left, base), size_px, font, light)


def _path(random: np.random.Generator, kind: Kind, height: int, count: int) -> list[tuple[float, float, float]]:
    """Where the camera looks in each frame: shift from the middle of the world in pixels (right, down), and zoom."""
    steps = np.arange(count) - (count - 1) / 2
    if kind == "growing sign":
        return [(0.0, 0.0, float(z)) for z in random.uniform(1.03, 1.09) ** (steps * random.choice([-1, 1]))]
    if kind == "shaken sign":
        at = np.cumsum(random.normal(0, 3.5, (count, 2)), axis=0)
        return [(float(x), float(y), 1.0) for x, y in at]
    angle, speed_px = random.uniform(0, 2 * np.pi), random.uniform(0.02, 0.12) * height
    return [(float(np.cos(angle) * speed_px * i), float(np.sin(angle) * speed_px * i), 1.0) for i in steps]


def _view(world: np.ndarray, size: Size, right: float, down: float, zoom: float) -> np.ndarray:
    middle = np.array([world.shape[1] / 2 + right, world.shape[0] / 2 + down])
    corner = middle - np.array(size) / 2 / zoom
    matrix = np.array([[1 / zoom, 0, corner[0]], [0, 1 / zoom, corner[1]]], np.float64)
    return cv2.warpAffine(world, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _lay_over(random: np.random.Generator, kind: Kind, views: list[np.ndarray]) -> None:
    """Write the same way into each view, whatever it shows."""
    height, width = views[0].shape[:2]
    font, sentences = SENTENCES[str(random.choice(list(SENTENCES)))]
    first = int(random.integers(len(sentences)))
    size_px = int(height * {"logo": 0.06, "title": 0.14, "ticker": 0.07, "subtitle": 0.075}[kind])
    speed_px = float(random.uniform(0.1, 0.3)) * width
    for i, view in enumerate(views):
        if kind == "ticker":
            cv2.rectangle(view, (0, height - 2 * size_px), (width, height), (20, 30, 90), -1)
            text = "   ".join([*sentences, *sentences])
            letter(view, text, (int(-speed_px * i / 2), height - int(0.7 * size_px)), size_px, font)
            continue
        text = sentences[(first + (i // 3 if kind == "subtitle" else 0)) % len(sentences)]
        text = text[: max(4, len(text) // 3)] if kind == "logo" else text
        left = (
            width - width_of(text, size_px, font) - 16
            if kind == "logo"
            else (width - width_of(text, size_px, font)) // 2
        )
        base = {"logo": 16 + size_px, "title": height // 2, "subtitle": height - size_px}.get(kind, 0)
        letter(view, text, (max(4, left), base), size_px, font)
