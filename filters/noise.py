"""Noise: grain of sensors and film, and what is left of it after encoding."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter

_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to edges that are straight
_GAIN = float(np.linalg.norm(_KERNEL))  # its answer to noise of standard deviation 1
_BLOCK = 16  # pixels
_SMOOTHEST = 10  # percent of the blocks: where little but noise is to be seen
_BIAS = 0.92  # the smoothest tenth of blocks of pure noise has so much of its deviation
_DARK, _BRIGHT = 16, 235  # blocks beyond are black bars or burnt out: noise is cut off there


@dataclasses.dataclass(kw_only=True)
class Noise(Filter):
    """Deviation of noise in the smoothest parts of the picture.

    Writes:
        noise: standard deviation of the noise in grey levels of 255, median over frames, in pictures scaled to one
            size; below 1 clean, above 5 plain to see. Unknown where no part of the picture is lit.

    After Immerkaer (Fast noise variance estimation, 1996), but block by block, so that texture does not count.
    """

    name: ClassVar[str] = "noise"
    frames: ClassVar[Frames] = Frames(fps=2, long_side_px=640)
    writes: ClassVar[pa.Schema] = pa.schema([("noise", pa.float32())])

    def score(self, frames: np.ndarray, times: np.ndarray) -> Any:
        found = [value for value in map(noise, frames) if value is not None]
        return float(np.median(found)) if found else None


def noise(picture: np.ndarray) -> float | None:
    """Standard deviation of the noise of a grey picture H W; None where it cannot be seen."""
    height, width = (side // _BLOCK * _BLOCK for side in picture.shape)
    if not height or not width:
        return None
    picture = picture[:height, :width]
    answer = cv2.filter2D(picture, cv2.CV_32F, _KERNEL)
    blocks = (width // _BLOCK, height // _BLOCK)
    power = cv2.resize(answer * answer, blocks, interpolation=cv2.INTER_AREA)
    level = cv2.resize(picture, blocks, interpolation=cv2.INTER_AREA)
    lit = power[(level > _DARK) & (level < _BRIGHT)]
    return float(np.sqrt(np.percentile(lit, _SMOOTHEST))) / _GAIN / _BIAS if lit.size else None
