"""Drawing for the demo's footage: backgrounds, shapes, letters, bars. Pictures are H W 3 RGB uint8."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Shape = Literal["circle", "square", "triangle", "star"]

COLOURS = {  # RGB
    "red": (214, 48, 49),
    "blue": (44, 95, 206),
    "yellow": (247, 202, 60),
    "white": (245, 245, 240),
    "purple": (142, 68, 173),
    "orange": (235, 126, 40),
}
BACKGROUNDS = {  # two RGB tones each
    "green meadow": ((62, 122, 54), (152, 186, 92)),
    "blue sky": ((88, 142, 206), (206, 226, 242)),
    "desert": ((176, 126, 76), (232, 204, 150)),
    "grey harbour": ((74, 84, 94), (160, 168, 172)),
}


def paint(width: int, height: int, background: str, seed: int) -> np.ndarray:
    """A background H W 3: clouds of noise at several scales between two tones, brighter at the top."""
    random = np.random.default_rng(seed)
    noise = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.4), (12, 0.25), (40, 0.2), (120, 0.15)):
        grid = random.random((cells, max(2, cells * width // height)), np.float32)
        noise += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    shade = np.clip(0.75 * (noise - 0.5) * 2 + 0.65 - 0.35 * np.linspace(0, 1, height, dtype=np.float32)[:, None], 0, 1)
    low, high = (np.array(tone, np.float32) for tone in BACKGROUNDS[background])
    return np.asarray(low + shade[..., None] * (high - low)).astype(np.uint8)


def _outline(shape: Shape) -> np.ndarray:
    """The corners of a shape around the origin, within the unit circle."""
    if shape == "star":
        angles, radii = np.arange(10) * np.pi / 5 - np.pi / 2, np.where(np.arange(10) % 2, 0.45, 1.0)
    else:
        corners = {"circle": 96, "square": 4, "triangle": 3}[shape]
        angles = np.arange(corners) * 2 * np.pi / corners - (np.pi / 4 if shape == "square" else np.pi / 2)
        radii = np.ones(corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def cut_out(shape: Shape, colour: tuple[int, int, int], size: int) -> np.ndarray:
    """The shape as S S 4 (RGB and opacity), lit from above, with a soft shadow."""
    big = size * 2
    canvas = np.zeros((big, big), np.uint8)
    corners = np.round((_outline(shape) * size * 0.62 + size) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255, cv2.LINE_AA, shift=4)
    mask = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    shadow = 0.45 * cv2.GaussianBlur(np.roll(mask, (size // 20, size // 24), (0, 1)), (0, 0), size / 30)
    light = np.linspace(1.12, 0.82, size, dtype=np.float32)[:, None, None]
    painted = np.clip(np.array(colour, np.float32) * light, 0, 255) * mask[..., None]
    opacity = mask + shadow * (1 - mask)
    rgb = np.where(opacity[..., None] > 0, painted / np.maximum(opacity[..., None], 1e-6), 0)
    return np.dstack([rgb, opacity * 255]).astype(np.float32)


def place(frame: np.ndarray, sprite: np.ndarray, x: float, y: float) -> np.ndarray:
    """Draw a sprite with its middle at (x, y), to a fraction of a pixel."""
    half = sprite.shape[0] / 2
    shift = np.array([[1, 0, x - half], [0, 1, y - half]], np.float64)
    drawn = cv2.warpAffine(sprite, shift, (frame.shape[1], frame.shape[0]), flags=cv2.INTER_LINEAR)
    opacity = drawn[..., 3:] / 255
    return np.asarray(frame * (1 - opacity) + drawn[..., :3] * opacity).astype(np.uint8)


def write(frame: np.ndarray, text: str) -> np.ndarray:
    """Large white letters on a dark band across the lower part."""
    height, width = frame.shape[:2]
    font, thickness = cv2.FONT_HERSHEY_DUPLEX, max(2, height // 120)
    scale = 0.9 * width / cv2.getTextSize(text, font, 1.0, thickness)[0][0]
    (text_width, text_height), _ = cv2.getTextSize(text, font, scale, thickness)
    frame = frame.copy()
    middle = round(0.78 * height)
    cv2.rectangle(frame, (0, middle - text_height), (width, middle + text_height), (24, 24, 32), -1)
    at = ((width - text_width) // 2, middle + text_height // 2)
    cv2.putText(frame, text, at, font, scale, (250, 250, 250), thickness, cv2.LINE_AA)
    return frame


def barred(frame: np.ndarray, bars: float) -> np.ndarray:
    """Letterbox bars above and below, each ``bars`` of the height."""
    if bars:
        frame = frame.copy()
        rows = round(frame.shape[0] * bars)
        frame[:rows] = frame[-rows:] = 0
    return frame
