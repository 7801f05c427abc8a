"""How fast the picture moves, and how much of the time it stands still."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter

_CHANGED_LEVELS = 10  # a pixel has changed when its grey level differs by more (of 255); less is noise
_CHANGED_SHARE = 0.001  # two frames are the same when fewer pixels have changed
_MOVED = (
    0.0023  # frame heights; and the picture as a whole moved by less: a slow pan over soft ground changes few pixels
)


@dataclasses.dataclass(kw_only=True)
class Motion(Filter):
    """Dense optical flow over an eighth of a second, four times a second.

    Writes:
        motion_score: median speed over the picture, averaged over time, in frame heights per second.
        motion_p90: the same for the 90th percentile of the picture: what the fastest tenth does.
        still_share: share (0..1) of these steps in which nothing visibly changes.

    Frames are taken on a time grid and speeds divided by the true time between them, so the frame rate does not matter;
    pictures are scaled to one size, so the resolution does not. Flow: DIS (Kroeger et al., ECCV 2016), OpenCV's.
    """

    name: ClassVar[str] = "motion"
    version: ClassVar[int] = 3
    frames: ClassVar[Frames] = Frames(fps=8, long_side_px=96)
    writes: ClassVar[pa.Schema] = pa.schema(
        [("motion_score", pa.float32()), ("motion_p90", pa.float32()), ("still_share", pa.float32())]
    )

    def score(self, frames: np.ndarray, times: np.ndarray) -> dict[str, Any]:
        if len(frames) < 2:
            return {"motion_score": None, "motion_p90": None, "still_share": None}
        # A picture half as large, looked at one scale finer, gives the same flow for less: on pans over real pictures
        # within 5% of the truth up to one frame height a second. Refinement only makes it slower.
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        flow.setVariationalRefinementIterations(0)
        flow.setFinestScale(1)
        height = frames.shape[1]
        medians, tails, still = [], [], []
        for i in range(1, len(frames), 2):
            before, after, step_s = frames[i - 1], frames[i], times[i] - times[i - 1]
            median_px, tail_px = _speeds(flow.calc(before, after, None))
            changed = np.count_nonzero(cv2.absdiff(before, after) > _CHANGED_LEVELS) / before.size
            medians.append(median_px / height / step_s)
            tails.append(tail_px / height / step_s)
            still.append(changed < _CHANGED_SHARE and median_px < _MOVED * height)
        return {
            "motion_score": float(np.mean(medians)),
            "motion_p90": float(np.mean(tails)),
            "still_share": float(np.mean(still)),
        }


def _speeds(flow: np.ndarray) -> tuple[float, float]:
    """Median and 90th percentile of the lengths of the vectors H W 2."""
    # Not cv2.magnitude: its last bit depends on where in memory the vectors lie.
    along, down = flow[..., 0], flow[..., 1]
    lengths = np.sqrt(along * along + down * down).ravel()
    median, tail = len(lengths) // 2, int(0.9 * (len(lengths) - 1))
    ranked = np.partition(lengths, (median, tail))  # percentiles without sorting everything
    return float(ranked[median]), float(ranked[tail])
