"""Finding shots: PySceneDetect's detectors propose hard cuts, fed from our own decoding, and we check them.

A proposal is checked against the frames around it. A real cut changes *what is where*, for good: after a flash, a
strobe or a light that is switched on, the old structure comes back, and a caption leaves the rest of the picture as it
was. Gradual transitions are found by ``curation.transitions`` between the hard cuts.
"""

from __future__ import annotations

import collections
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from curation import likeness
from curation.likeness import colour_distance, luma, same_structure, same_tiles
from curation.transitions import Transitions

DetectorName = Literal["adaptive", "content", "threshold", "none"]

LONG_SIDE_PX = 128  # the size of picture that is read for shots
_ADAPTIVE_RATIO = 2.0  # lower than PySceneDetect's 3.0 and 15: proposals are checked afterwards
_ADAPTIVE_MIN_CHANGE = 1.5
_AROUND_S = 0.35  # a flash is over, and a strobe has come round, within this time
_MOST_AROUND = 9  # frames compared on either side
# Measured on films with known cuts (benchmarks/shots.py): correlation of structure with the frames around.
_OTHER, _DOUBTFUL = 0.44, 0.6
_VISIBLE_LEVELS = 12  # a visibly changed pixel differs by this much of 255
_MOST_OF_IT, _HARDLY_ANY = 0.41, 0.1  # share of the picture that visibly changes
_STILL, _CALM = 0.15, 2.7  # mean change per frame of a picture at rest, and of one with ordinary motion


class Cut(NamedTuple):
    """Where one shot ends and the next begins, as frame indices; between them lies a gradual transition."""

    end: int  # first frame that is no longer the old shot's
    start: int  # first frame of the new shot


class Seen(NamedTuple):
    """What is remembered of a frame."""

    frame: int
    t_s: float
    picture: np.ndarray  # at likeness.SIZE


class ShotDetector:
    """Feed frames one by one; learn where shots end and begin, a second or two later.

    Args:
        detector: PySceneDetect's ``adaptive`` (content change against its neighbours), ``content`` (fixed threshold) or
            ``threshold`` (fades through black, cut in the middle), or ``none``: the whole video is one shot. With the
            first two, gradual transitions are found and left out.
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
        self._check = detector in ("adaptive", "content")
        self._transitions = Transitions() if self._check else None
        self._seen: collections.deque[Seen] = collections.deque()
        self._proposed: list[int] = []
        self._checked = 0  # proposals before this frame have been checked
        self._timecode = FrameTimecode
        self._last = -1

    @property
    def settled(self) -> int:
        """No cut will be reported any more that ends before this frame."""
        if self._transitions is not None:
            return self._transitions.settled
        return self._last + 1 if self._detector is None else max(0, self._last - _MOST_AROUND)

    def push(self, index: int, t_s: float, picture: np.ndarray) -> list[Cut]:
        """Take the frame H W 3 (BGR, uint8) shown at ``t_s``; return cuts found, in order, which lie further back."""
        self._last = index
        if self._detector is None:
            return []
        small = likeness.shrink(picture)
        self._seen.append(Seen(index, t_s, small))
        # The rate is immaterial: it only turns the index into a time code and back.
        proposals = self._detector.process_frame(self._timecode(index, fps=25.0), small)
        return self._take(proposals, t_s)

    def finish(self) -> list[Cut]:
        """Cuts that only show at the end of the video."""
        if self._detector is None or self._last < 0:
            return []
        proposals = self._detector.post_process(self._timecode(self._last, fps=25.0))
        return self._take(proposals, float("inf"))

    def _take(self, proposals: list[Any], now_s: float) -> list[Cut]:
        self._proposed += [int(proposal.frame_num) for proposal in proposals if proposal.frame_num > 0]
        if self._transitions is None:
            cuts, self._proposed = [Cut(i, i) for i in sorted(self._proposed)], []
            self._forget()
            return cuts
        self._check_proposals(now_s)
        cuts = [Cut(*span) for span in self._transitions.found(final=now_s == float("inf"))]
        self._forget()
        return cuts

    def _check_proposals(self, now_s: float) -> None:
        """Hand frames on to the search for transitions once it is known whether a shot begins with them."""
        assert self._transitions is not None
        seen = {entry.frame: entry for entry in self._seen}
        while self._checked <= self._last:
            i = self._checked
            if i in self._proposed or now_s == float("inf") or self._is_past(seen[i], now_s):
                if i in self._proposed and not self._is_past(seen[i], now_s):
                    return
                cut = i in self._proposed and i - 1 in seen and self._is_cut(i, seen)
                self._proposed = [p for p in self._proposed if p > i]
                self._transitions.push(seen[i].frame, seen[i].t_s, seen[i].picture, new_shot=cut)
                self._checked += 1
            else:
                return

    def _is_past(self, entry: Seen, now_s: float) -> bool:
        """Whether enough frames after this one are known, and no proposal for it can come any more."""
        return self._last - entry.frame >= _MOST_AROUND or (
            now_s - entry.t_s > _AROUND_S and self._last > entry.frame + 3
        )

    def _forget(self) -> None:
        while self._seen and self._seen[0].frame < self._checked - _MOST_AROUND - 2:
            self._seen.popleft()

    def _is_cut(self, i: int, seen: dict[int, Seen]) -> bool:
        before, after = seen[i - 1], seen[i]
        earlier = [seen[j].picture for j in range(i - _MOST_AROUND, i - 1) if j in seen]
        later = [
            seen[j].picture
            for j in range(i + 1, i + _MOST_AROUND)
            if j in seen and seen[j].t_s <= after.t_s + _AROUND_S
        ]
        return is_cut(before.picture, after.picture, earlier=earlier, later=later)


def is_cut(before: np.ndarray, after: np.ndarray, *, earlier: list[np.ndarray], later: list[np.ndarray]) -> bool:
    """Whether two neighbouring frames, H W 3 (BGR) at ``likeness.SIZE``, belong to different shots.

    Args:
        earlier: frames before ``before``, the nearest last.
        later: frames after ``after``, the nearest first.
    """
    likest = same_structure(before, after)
    for pair in (*((before, frame) for frame in later), *((frame, after) for frame in reversed(earlier))):
        if likest > _DOUBTFUL:
            break
        likest = max(likest, same_structure(*pair))
    visible = float(np.mean(np.abs(luma(before) - luma(after)) > _VISIBLE_LEVELS))
    change = float(cv2.absdiff(before, after).mean())
    if likest > _DOUBTFUL:  # the same things in other colours, as of plain cards
        return visible < _HARDLY_ANY and change > 20
    neighbours = [(earlier[-1], before)] if earlier else []
    neighbours += [(after, later[0])] if later else []
    unrest = max((float(cv2.absdiff(a, b).mean()) for a, b in neighbours), default=0.0)
    if likest > _OTHER:
        return visible > _MOST_OF_IT and unrest < _CALM
    if same_tiles(before, after) > 0.5:  # a caption before a running shot; a slide has nothing that moves
        return unrest < _STILL
    contrast = min(float(luma(before).std()), float(luma(after).std()))
    if change < 0.9 * contrast and contrast < 40:
        return likest < 0.26 and colour_distance(before, after) > 0.19
    return True
