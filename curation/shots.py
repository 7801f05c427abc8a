"""Finding shots with PySceneDetect's detectors, fed from our own decoding.

PySceneDetect proposes cuts; each proposal is then checked on the two frames it lies between. Adaptive detection alone
has to be set so high that it misses slide changes and dark titles, or so low that flicker, exposure jumps and the noisy
hue of near-black frames count as cuts. A real cut changes *what is where*: the edges of the two frames do not
coincide, or their colours have nothing in common, and some part of the picture visibly changes.
"""

from __future__ import annotations

import collections
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

DetectorName = Literal["adaptive", "content", "threshold", "none"]

LONG_SIDE_PX = 128  # the size of picture that detectors see
_ADAPTIVE_RATIO = 2.2  # lower than PySceneDetect's 3.0 and 15: proposals are checked afterwards
_ADAPTIVE_MIN_CHANGE = 2.3
# Measured on test footage: edge maps across cuts <= 0.53, within shots >= 0.62; colours across unrelated shots <= 0.23.
_SAME_EDGES = 0.575  # intersection over union of two edge maps
_OTHER_EDGES = 0.2  # the same where only a small part of the picture changes while other things move
_UNRELATED_COLOURS = 0.3  # correlation of colour histograms
_VISIBLE_LEVELS = 20  # a visibly changed pixel differs by this much of 255
_VISIBLE_SHARE, _LARGE_SHARE = 0.003, 0.1  # of the picture; a title on black is small
_MOST, _CONTRAST, _SAME_PICTURE = 0.4, 8.0, 0.95  # an exposure jump: most pixels change, their pattern does not
_STILL = 10.0  # nothing else moves: the jump is this many times larger than the changes around it
_LOOK_BACK = 8  # frames kept for checking; detectors report at most 2 frames late


class Cut(NamedTuple):
    """Where one shot ends and the next begins, as frame indices; between them lies a gradual transition."""

    end: int  # first frame that is no longer the old shot's
    start: int  # first frame of the new shot


class ShotDetector:
    """Feed frames one by one; learn where shots end and begin.

    Args:
        detector: ``adaptive`` (content change against its neighbours), ``content`` (fixed threshold), ``threshold``
            (fades through black) of PySceneDetect, or ``none``: the whole video is one shot.
        threshold: the detector's own threshold; None is its default.
    """

    def __init__(self, detector: DetectorName = "adaptive", threshold: float | None = None) -> None:
        from scenedetect import FrameTimecode
        from scenedetect.detector import SceneDetector
        from scenedetect.detectors import AdaptiveDetector, ContentDetector, ThresholdDetector

        self._detector: SceneDetector | None = None
        if detector == "adaptive":
            ratio = _ADAPTIVE_RATIO if threshold is None else threshold
            self._detector = AdaptiveDetector(
                adaptive_threshold=ratio, min_content_val=_ADAPTIVE_MIN_CHANGE, min_scene_len=1
            )
        elif detector == "content":
            self._detector = ContentDetector(threshold=27.0 if threshold is None else threshold, min_scene_len=1)
        elif detector == "threshold":
            self._detector = ThresholdDetector(threshold=12 if threshold is None else threshold, min_scene_len=1)
        self._check = detector != "threshold"  # a fade has no two frames between which it happens
        self._recent: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=_LOOK_BACK)
        self._timecode = FrameTimecode
        self._last = 0

    @property
    def settled(self) -> int:
        """No cut will be reported any more that ends before this frame."""
        return max(0, self._last - _LOOK_BACK)

    def push(self, index: int, t_s: float, picture: np.ndarray) -> list[Cut]:
        """Take the frame H W 3 (BGR, uint8) shown at ``t_s``; return cuts found, which may lie a few frames back."""
        self._last = index
        if self._detector is None:
            return []
        self._recent.append((index, picture))
        # The rate is immaterial: it only turns the index into a time code and back.
        return self._confirm(self._detector.process_frame(self._timecode(index, fps=25.0), picture))

    def finish(self) -> list[Cut]:
        """Cuts that only show at the end of the video."""
        if self._detector is None:
            return []
        return self._confirm(self._detector.post_process(self._timecode(self._last, fps=25.0)))

    def _confirm(self, proposals: list[Any]) -> list[Cut]:
        recent = dict(self._recent)
        indices = [int(proposal.frame_num) for proposal in proposals]
        return [Cut(i, i) for i in indices if i > 0 and (not self._check or self._is_cut(i, recent))]

    def _is_cut(self, i: int, recent: dict[int, np.ndarray]) -> bool:
        if i not in recent or i - 1 not in recent:
            return True  # too long ago to check; no detector in use reports that late
        around = [(recent[j - 1], recent[j]) for j in (i - 1, i + 1) if j in recent and j - 1 in recent]
        return is_cut(recent[i - 1], recent[i], around=around)


def is_cut(before: np.ndarray, after: np.ndarray, *, around: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether two neighbouring frames H W 3 (BGR) belong to different shots.

    ``around`` holds the pairs of frames just before and just after, which tell how much moves within the shots.
    """
    grey = _grey(before), _grey(after)
    change = cv2.absdiff(*grey)
    visible = float(np.mean(change > _VISIBLE_LEVELS))
    if (
        visible > _MOST
        and min(float(picture.std()) for picture in grey) > _CONTRAST
        and _correlation(*grey) > _SAME_PICTURE
    ):
        return False  # brighter or darker, but the same
    if cv2.compareHist(_histogram(before), _histogram(after), cv2.HISTCMP_CORREL) < _UNRELATED_COLOURS:
        return True
    if visible < _VISIBLE_SHARE:
        return False
    unrest = max((float(cv2.absdiff(_grey(a), _grey(b)).mean()) for a, b in around), default=0.0)
    telling = visible >= _LARGE_SHARE or float(change.mean()) > _STILL * unrest
    edges = [_edges(picture) for picture in grey]
    union = int(np.count_nonzero(edges[0] | edges[1]))
    same = int(np.count_nonzero(edges[0] & edges[1])) / max(1, union)
    return same < (_SAME_EDGES if telling else _OTHER_EDGES)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED)[0, 0])


def _histogram(picture: np.ndarray) -> np.ndarray:
    return cv2.calcHist([picture], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)


def _edges(grey: np.ndarray) -> np.ndarray:
    # Dilated, so that edges that moved by a pixel still coincide.
    return cv2.dilate(cv2.Canny(grey, 30, 90), np.ones((3, 3), np.uint8)) > 0
