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
_BAR_LEVEL = 32  # a bar is no brighter than this (of 255)
_BAR_NOISE = 3.0  # and varies less than this along the line and over time (standard deviation)
_FLAT = 2.0  # a picture with less contrast than this has no sharpness


@dataclasses.dataclass(kw_only=True)
class Quality(Filter):
    """Classical measures of single frames.

    Writes:
        sharpness: fine detail against overall contrast: deviation of the Laplacian over deviation of grey, median over
            frames; about 0.05 blurred, 0.2 soft, above 0.4 crisp. Unknown for flat pictures.
        exposure: mean grey level, 0 (black) to 1 (white).
        clipped_share: share of pixels that are fully dark or fully bright, 0..1.
        border_area: share of the picture covered by black bars that never change, 0..1.
        letterbox: the bars as shares of width or height (left, top, right, bottom); null without bars.
    """

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 3
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
        unclipped = sum(cv2.countNonZero(cv2.inRange(frame, _DARK + 1, _BRIGHT - 1)) for frame in frames)
        sharpness = [value for value in map(_sharpness, frames) if value is not None]
        left, top, right, bottom = bars(frames)
        area = 1.0 - (1.0 - left - right) * (1.0 - top - bottom)
        return {
            "sharpness": float(np.median(sharpness)) if sharpness else None,
            "exposure": float(np.mean([cv2.mean(frame)[0] for frame in frames])) / 255,
            "clipped_share": 1.0 - unclipped / frames.size,
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
    """Width of the black bars (left, top, right, bottom) of grey frames T H W, as shares of width and height.

    A line belongs to a bar when it is dark and uniform in every frame. A picture that is all bar has none.
    """
    found = []
    for axis in (1, 2):  # rows, then columns
        lines = np.stack([_line_means(frame, axis) for frame in frames])  # T, and one value per line
        dark = np.flatnonzero((lines.max(axis=0) <= _BAR_LEVEL) & (lines.std(axis=0) < _BAR_NOISE))
        noise = np.take(frames, dark, axis=axis).std(axis=3 - axis).max(axis=0)
        inside = np.setdiff1d(np.arange(lines.shape[1]), dark[noise < _BAR_NOISE])
        if len(inside) == 0:
            return 0.0, 0.0, 0.0, 0.0
        found.append((inside[0] / lines.shape[1], 1 - (inside[-1] + 1) / lines.shape[1]))
    (top, bottom), (left, right) = found
    return float(left), float(top), float(right), float(bottom)


def _line_means(frame: np.ndarray, axis: int) -> np.ndarray:
    """Mean grey of each row (axis 1) or column (axis 2) of a picture H W."""
    return cv2.reduce(frame, 2 - axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
