"""Sharpness, exposure and black bars, from a few frames a second."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter

_DARK, _BRIGHT = 3, 252  # grey levels beyond which shadows and highlights hold no detail
_NEARLY = 7  # grey levels before them over which a pixel counts less and less: coarse quantisation strays so far
_BAR_LEVEL = 32  # a bar that is no brighter than this (of 255) is black
_BAR_NOISE = 3.0  # a bar varies less than this along the line and over time (standard deviation)
_EDGE_LEVELS = 10  # the picture differs from a bar by more
_SMEAR = 3  # lines on either side of an edge that codecs filter
_SMEARED = 0.25  # of the picture's difference from the bar: a smeared line of the bar has less
_FLAT = 2.0  # a picture with less contrast than this has no sharpness

_LEVELS = np.arange(256)
_BEYOND = np.maximum(_DARK - _LEVELS, _LEVELS - _BRIGHT)  # how far a level lies beyond the limits
_CLIPPED = np.round(255 * np.clip(1 + _BEYOND / _NEARLY, 0, 1)).astype(np.uint8)


@dataclasses.dataclass(kw_only=True)
class Quality(Filter):
    """Classical measures of single frames.

    Writes:
        sharpness: fine detail against overall contrast: deviation of the Laplacian over deviation of grey, median over
            frames; about 0.05 blurred, 0.2 soft, above 0.4 crisp. Unknown for flat pictures.
        exposure: mean grey level, 0 (black) to 1 (white).
        clipped_share: share of pixels that are fully dark or fully bright, 0..1; those that nearly are count in part.
        border_area: share of the picture covered by bars that never change, black or of another colour, 0..1.
        letterbox: the bars as shares of width or height (left, top, right, bottom); null without bars.
    """

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 4
    frames: ClassVar[Frames] = Frames(fps=2, long_side_px=640)
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            ("sharpness", pa.float32()),
            ("exposure", pa.float32()),
            ("clipped_share", pa.float32()),
            ("border_area", pa.float32()),
            ("letterbox", pa.struct([(side, pa.float32()) for side in ("left", "top", "right", "bottom")])),
        ]
    )

    def score(self, frames: np.ndarray, times: np.ndarray) -> dict[str, Any]:
        if len(frames) == 0:
            return dict.fromkeys(self.writes.names)
        sharpness = [value for value in map(_sharpness, frames) if value is not None]
        left, top, right, bottom = bars(frames)
        area = 1.0 - (1.0 - left - right) * (1.0 - top - bottom)
        return {
            "sharpness": float(np.median(sharpness)) if sharpness else None,
            "exposure": float(np.mean([cv2.mean(frame)[0] for frame in frames])) / 255,
            "clipped_share": float(np.mean([cv2.mean(cv2.LUT(frame, _CLIPPED))[0] for frame in frames])) / 255,
            "border_area": area,
            "letterbox": {"left": left, "top": top, "right": right, "bottom": bottom} if area else None,
        }


def _sharpness(frame: np.ndarray) -> float | None:
    contrast = float(cv2.meanStdDev(frame)[1][0, 0])
    if contrast < _FLAT:
        return None
    detail = cv2.norm(cv2.Laplacian(frame, cv2.CV_16S), cv2.NORM_L2) / math.sqrt(
        frame.size
    )  # it has no mean to speak of
    return float(detail / 4 / contrast)


def bars(frames: np.ndarray) -> tuple[float, float, float, float]:
    """Width of the bars (left, top, right, bottom) of grey frames T H W, as shares of width and height.

    The lines of a bar are uniform and the same in every frame. A black bar is one whatever it borders on; a bar of
    another colour ends at once all along its inner edge, as sky, walls and the margins of slides do not. A picture that
    is all bar has none.
    """
    found = []
    for axis in (1, 2):  # rows, then columns
        means = np.stack([_line_means(frame, axis) for frame in frames])  # T, and one value per line
        sides = [_bar(frames, means, axis), _bar(np.flip(frames, axis), means[:, ::-1], axis)]
        if sum(sides) >= means.shape[1]:
            return 0.0, 0.0, 0.0, 0.0
        found.append([side / means.shape[1] for side in sides])
    (top, bottom), (left, right) = found
    return left, top, right, bottom


def _bar(frames: np.ndarray, means: np.ndarray, axis: int) -> int:
    """How many lines the bar has that begins with the first one."""
    if _noise(frames, 1, axis)[0] >= _BAR_NOISE:  # so it is with most pictures
        return 0
    level, steady = means.mean(axis=0), means.std(axis=0) < _BAR_NOISE
    dark = steady & (means.max(axis=0) <= _BAR_LEVEL)
    for alike in (dark, steady & (np.abs(level - level[0]) < _BAR_NOISE)):
        count = _first(~alike)
        count = _first(_noise(frames, count, axis) >= _BAR_NOISE)
        if count and (alike is dark or _ends_at_once(frames, count, axis)):
            return count + _smeared(frames, count, axis)
    return 0


def _smeared(frames: np.ndarray, count: int, axis: int) -> int:
    """How many lines beyond a bar of ``count`` lines belong to it, though a codec smeared the picture into them."""
    if count + 2 * _SMEAR > frames.shape[axis]:
        return 0
    lines = np.moveaxis(frames, axis, 0)[count - 1 : count + 2 * _SMEAR].astype(np.float32)
    off = np.abs(lines[1:] - lines[0].mean(axis=1, keepdims=True)).mean(axis=(1, 2))
    return _first(off[:_SMEAR] >= _SMEARED * off[_SMEAR:])


def _noise(frames: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Most deviation along each of the first lines, over time."""
    lines = frames[:, :count] if axis == 1 else frames[:, :, :count]
    return np.asarray(lines.std(axis=3 - axis, dtype=np.float32).max(axis=0))


def _first(lines: np.ndarray) -> int:
    """The position of the first line that is true; their number if there is none."""
    return int(lines.argmax()) if lines.any() else len(lines)


def _ends_at_once(frames: np.ndarray, count: int, axis: int) -> bool:
    """Whether most of the picture's edge differs from the bar beside it; scaling may have mixed one line."""
    if count + 1 >= frames.shape[axis]:
        return False
    bar, edge = (np.take(frames, k, axis=axis).astype(np.int16) for k in (count - 1, count + 1))
    return float((np.abs(edge - bar) > _EDGE_LEVELS).mean()) > 0.5


def _line_means(frame: np.ndarray, axis: int) -> np.ndarray:
    """Mean grey of each row (axis 1) or column (axis 2) of a picture H W."""
    return cv2.reduce(frame, 2 - axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
