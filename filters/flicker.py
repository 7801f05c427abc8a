"""How much the picture flickers: what changes from frame to frame and is not motion."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter
from filters import motion

_LEAST_PX = 16  # a narrower picture has no room for the flow's patches


@dataclasses.dataclass(kw_only=True)
class Flicker(Filter):
    """Change from each frame to the next that optical flow does not explain: light and texture that come and go.

    Writes:
        flicker: mean absolute difference in grey between a frame and the next one brought back along the flow, over the
            picture and over time, in units of full white (0..1). Real clips mostly have below 0.01, water somewhat
            more. What comes into sight counts too, so very fast motion adds to it. Unknown for a single frame.

    Every frame is looked at, whatever the frame rate: one flicker has about the same value at all rates. Fine grain is
    averaged away as pictures are scaled to 256 px.

    Source: the warping error of Lai et al. (ECCV 2018), without its mask of what is hidden and with absolute instead of
    squared differences. VBench's "temporal flickering" is 1 minus the difference without flow, to which motion adds:
    it is for videos in which nothing moves.
    """

    name: ClassVar[str] = "flicker"
    frames: ClassVar[Frames] = Frames(fps=1000, long_side_px=256)  # no video has more: all of them
    writes: ClassVar[pa.Schema] = pa.schema([("flicker", pa.float32())])

    def score(self, frames: np.ndarray, times: np.ndarray) -> float | None:
        if len(frames) < 2 or min(frames.shape[1:]) < _LEAST_PX:
            return None
        return float(motion.unexplained(frames).mean()) / 255
