"""Blockiness: the grid that strong compression leaves."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter

_BLOCK = 8  # pixels; the grid of MPEG-1 to H.264, and a part of the larger ones


@dataclasses.dataclass(kw_only=True)
class Blockiness(Filter):
    """How much more the picture changes across the lines of a grid of 8 pixels than between them.

    Writes:
        blockiness: share of the change across the grid that is not there between its lines, 0 (no grid) to 1 (nothing
            but blocks), median over frames; above 0.2 the grid is plain to see. Unknown for flat pictures, and for
            clips of less than half a second that lie between two points of the time grid.

    Looked at where the clip begins and then every two seconds, in the source's own size, wherever the grid begins.
    After Wang, Sheikh and Bovik (No-reference perceptual quality assessment of JPEG compressed images, 2002). A source
    that was scaled after compression shows no grid.
    """

    name: ClassVar[str] = "blockiness"
    version: ClassVar[int] = 2
    # Large pictures: as many as at 0.5 fps, which has none of most short clips.
    frames: ClassVar[Frames] = Frames(fps=2, long_side_px=None, every=4)
    writes: ClassVar[pa.Schema] = pa.schema([("blockiness", pa.float32())])

    def score(self, frames: np.ndarray, times: np.ndarray) -> Any:
        found = [value for value in map(blockiness, frames) if value is not None]
        return float(np.median(found)) if found else None


def blockiness(picture: np.ndarray) -> float | None:
    """Of a grey picture H W."""
    found = [value for axis in (0, 1) if (value := _grid(picture, axis)) is not None]
    return float(np.mean(found)) if found else None


def _grid(picture: np.ndarray, axis: int) -> float | None:
    """Share of the mean change along an axis, at the lines of the grid, that exceeds the change elsewhere."""
    steps = np.abs(np.diff(picture.astype(np.int16), axis=axis)).mean(axis=1 - axis)
    steps = steps[: len(steps) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    if len(steps) < 4:
        return None
    by_phase = np.median(steps, axis=0)  # one strong edge of the picture is no grid
    line = int(by_phase.argmax())
    across, between = float(by_phase[line]), float(np.median(np.delete(by_phase, line)))
    return (across - between) / across if across > 0 else None
