"""PySceneDetect's detectors, fed with many small pictures at once.

``AdaptiveDetector`` and ``ContentDetector`` decide on the mean change of hue, saturation and value from one picture to
the next. That change is computed here for a block of pictures in one go, in place of three array passes for each; the
numbers, and what the detectors make of them, are the same.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector, ThresholdDetector

DetectorName = Literal["adaptive", "content", "threshold", "none"]

# Lower than PySceneDetect's 3.0 and 15, and 27: proposals are checked afterwards.
_ADAPTIVE_RATIO, _ADAPTIVE_MIN_CHANGE = 2.0, 1.5


class _Adaptive(AdaptiveDetector):  # type: ignore[misc]
    """Takes the change from the last picture in place of a picture."""

    def _calculate_frame_score(self, timecode: Any, frame_img: Any) -> float:
        return float(frame_img)


class _Content(ContentDetector):  # type: ignore[misc]
    """Takes the change from the last picture in place of a picture."""

    def _calculate_frame_score(self, timecode: Any, frame_img: Any) -> float:
        return float(frame_img)


class Proposals:
    """Where PySceneDetect would cut.

    Args:
        detector: ``adaptive``, ``content`` or ``threshold``.
        threshold: the detector's own; None is its default, or for ``adaptive`` one low enough to be checked.
    """

    def __init__(self, detector: DetectorName, threshold: float | None) -> None:
        self._detector: Any
        if detector == "adaptive":
            ratio = _ADAPTIVE_RATIO if threshold is None else threshold
            self._detector = _Adaptive(ratio, min_scene_len=0, min_content_val=_ADAPTIVE_MIN_CHANGE)
        elif detector == "content":
            self._detector = _Content(27.0 if threshold is None else threshold, min_scene_len=0)
        else:
            self._detector = ThresholdDetector(12 if threshold is None else threshold)
        self._by_change = detector != "threshold"
        self._last: np.ndarray | None = None  # the last picture in hue, saturation and value
        self._count = 0

    def take(self, pictures: np.ndarray) -> list[int]:
        """Take the next pictures, N H W 3 (BGR, uint8); return the positions, counted from the first ever, of cuts."""
        found: list[Any] = []
        if self._by_change:
            for change in self._changes(pictures).tolist():
                found += self._detector.process_frame(self._count, change)  # it only subtracts time codes: numbers do
                self._count += 1
            return [int(position) for position in found]
        for picture in pictures:
            found += self._detector.process_frame(_timecode(self._count), picture)
            self._count += 1
        return [int(cut.frame_num) for cut in found]

    def finish(self) -> list[int]:
        """Cuts that only show at the end."""
        if self._by_change or not self._count:
            return []
        return [int(cut.frame_num) for cut in self._detector.post_process(_timecode(self._count - 1))]

    def _changes(self, pictures: np.ndarray) -> np.ndarray:
        count, height, width = pictures.shape[:3]
        hsv = cv2.cvtColor(pictures.reshape(count * height, width, 3), cv2.COLOR_BGR2HSV).reshape(count, -1)
        before = np.concatenate([hsv[:1] if self._last is None else self._last, hsv[:-1]])
        self._last = hsv[-1:].copy()
        sums = cv2.reduce(cv2.absdiff(hsv, before), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        return np.asarray(sums[:, 0] / (3.0 * height * width))


def _timecode(position: int) -> FrameTimecode:
    return FrameTimecode(position, fps=25.0)  # the rate is immaterial: only the number is read again
