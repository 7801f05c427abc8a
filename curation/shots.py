"""Finding shots: PySceneDetect's detectors propose hard cuts, fed from our own decoding, and we check them.

A proposal is checked against the pictures around it. A real cut changes *what is where*, for good: after a flash, a
strobe or a light that is switched on, the old structure comes back, and a caption leaves the rest of the picture as it
was. Gradual transitions are found by ``curation.transitions`` between the hard cuts.

What is decided about a place depends on a few seconds around it alone, so it makes no difference where feeding began.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from curation import likeness
from curation.likeness import Look, colour_distance, hue_distance, relit, same_structure, same_tiles, spread
from curation.transitions import Transitions

DetectorName = Literal["adaptive", "content", "threshold", "none"]

_LOOKS_PER_S = 32.0  # frames are looked at no denser than this, whatever the frame rate
_BLOCK = 64  # looks that are worked on together
_AROUND_S = 0.35  # a flash is over, and a strobe has come round, within this time
_MOST_AROUND = 9  # looks compared on either side
_BLACK_S = 4.0  # a cut in a long black lies no farther than this before the picture comes back
# Measured on films with known cuts (benchmarks/shots.py): correlation of structure with the pictures around.
_OTHER, _DOUBTFUL, _ALIKE = 0.44, 0.6, 0.65
_RELIT = 0.02  # share of the change of a picture that another light leaves unexplained
_VISIBLE_LEVELS = 12  # a visibly changed pixel differs by this much of 255
_MOST_OF_IT, _HARDLY_ANY = 0.41, 0.1  # share of the picture that visibly changes
_NOISE = 1.5  # change that black and blank pictures have among themselves
_FLASH = 0.1  # of a change, what is left of it once a flash is over
_STILL, _CALM = 0.15, 2.7  # mean change per frame of a picture at rest, and of one with ordinary motion


class Cut(NamedTuple):
    """Where one shot ends and the next begins, as frame indices; between them lies a gradual transition."""

    end: int  # first frame that is no longer the old shot's
    start: int  # first frame of the new shot


class ShotDetector:
    """Feed frames one by one; learn where shots end and begin, a second or two later.

    Args:
        detector: PySceneDetect's ``adaptive`` (content change against its neighbours), ``content`` (fixed threshold) or
            ``threshold`` (fades through black, cut in the middle), or ``none``: the whole video is one shot. With the
            first two, gradual transitions are found and left out.
        threshold: the detector's own threshold; None is its default.
    """

    def __init__(self, detector: DetectorName = "adaptive", threshold: float | None = None) -> None:
        from curation.proposals import Proposals  # imports PySceneDetect, which takes its time

        self._proposals = None if detector == "none" else Proposals(detector, threshold)
        self._transitions = Transitions() if detector in ("adaptive", "content") else None
        self._looks: collections.deque[Look] = collections.deque()
        self._first = 0  # position of the first of these, counted from the first ever
        self._new: list[Look] = []  # not worked on yet
        self._skipped: list[Look] = []  # frames since the last look
        self._proposed: set[int] = set()  # positions
        self._checked = 0  # looks before this position have been handed on
        self._point = -1.0
        self._last = -1
        self.settled = 0  # no cut will be reported any more that ends before this frame

    def push(self, index: int, t_s: float, picture: np.ndarray) -> list[Cut]:
        """Take the frame H W 3 (BGR, uint8) shown at ``t_s``; return cuts found, in order, which lie further back."""
        self._last = index
        if self._proposals is None:
            self.settled = index + 1
            return []
        look = Look(index, t_s, likeness.shrink(picture))
        point = float(t_s * _LOOKS_PER_S + 1e-6) // 1
        if point <= self._point:
            self._skipped.append(look)
            return []
        self._point = point
        look.skipped, self._skipped = self._skipped, []
        self._new.append(look)
        return self._work(final=False) if len(self._new) >= _BLOCK else []

    def finish(self) -> list[Cut]:
        """Cuts that only show at the end of the video."""
        if self._proposals is None or self._last < 0:
            return []
        return self._work(final=True)

    def _work(self, *, final: bool) -> list[Cut]:
        assert self._proposals is not None
        new, self._new = self._new, []
        self._looks.extend(new)
        if new:
            self._proposed.update(self._proposals.take(np.stack([look.picture for look in new])))
        if final:
            self._proposed.update(self._proposals.finish())
        if self._transitions is None:
            return self._unchecked(final)
        self._check(final)
        cuts = [Cut(*span) for span in self._transitions.found(final=final)]
        self.settled = self._transitions.settled
        self._forget(self._checked - _MOST_AROUND - 1)
        return cuts

    def _unchecked(self, final: bool) -> list[Cut]:
        looks, now_s = list(self._looks), self._looks[-1].t_s
        recent = next(i for i, look in enumerate(looks) if look.t_s >= now_s - _BLACK_S)
        cuts = sorted({looks[max(position - self._first, recent, 0)].frame for position in self._proposed})
        self._proposed.clear()
        self.settled = self._last + 1 if final else looks[recent].frame
        self._forget(self._first + recent)
        return [Cut(frame, frame) for frame in cuts if frame > 0]

    def _check(self, final: bool) -> None:
        """Hand looks on to the search for transitions once it is known whether a shot begins with them."""
        assert self._transitions is not None
        looks = list(self._looks)
        end = len(looks) if final else len(looks) - _MOST_AROUND - 2
        for i in range(self._checked - self._first, end):
            proposed = i > 0 and self._first + i in self._proposed
            cut = exact_cut(looks[i - 1], looks[i]) if proposed and is_cut(*around(looks, i)) else None
            self._transitions.push(looks[i], cut)
        self._checked = self._first + max(end, self._checked - self._first)
        self._proposed = {position for position in self._proposed if position >= self._checked}

    def _forget(self, position: int) -> None:
        while self._looks and self._first < position:
            self._looks.popleft()
            self._first += 1


def around(looks: Sequence[Look], i: int) -> tuple[list[Look], list[Look]]:
    """The looks before the i-th and from it on that are near enough to judge whether a shot begins with it."""
    low, high = looks[i - 1].t_s - _AROUND_S, looks[i].t_s + _AROUND_S
    before = [look for look in looks[max(0, i - _MOST_AROUND) : i] if look.t_s >= low]
    after = [look for look in looks[i : i + _MOST_AROUND] if look.t_s <= high]
    return before, after


def exact_cut(before: Look, after: Look) -> int:
    """The first frame of the new shot, among those between two looks."""
    frames = [before, *after.skipped, after]
    steps = [cv2.norm(a.picture, b.picture, cv2.NORM_L1) for a, b in itertools.pairwise(frames)]
    return frames[1 + int(np.argmax(steps))].frame


def is_cut(earlier: Sequence[Look], later: Sequence[Look]) -> bool:
    """Whether a shot ends with the last of ``earlier`` and another begins with the first of ``later``."""
    before, after = earlier[-1], later[0]
    change = _change(before, after)
    returned = [_change(before, look) for look in later[1:]] + [_change(look, after) for look in earlier[:-1]]
    if change < _NOISE or min(returned, default=change) < _FLASH * change:
        return False
    likest = -1.0
    for pair in (*((before, look) for look in later), *((look, after) for look in reversed(earlier[:-1]))):
        likest = max(likest, same_structure(*pair))
        if likest > _ALIKE:
            break
    visible = float(np.mean(np.abs(before.luma - after.luma) > _VISIBLE_LEVELS))
    neighbours = [tuple(earlier[-2:])] * (len(earlier) > 1) + [tuple(later[:2])] * (len(later) > 1)
    unrest = max((_change(a, b) for a, b in neighbours), default=0.0)
    tiles = same_tiles(before, after)
    if likest > _ALIKE:  # the same in other colours: of plain cards a cut, of a place with things in it coloured light
        return visible < _HARDLY_ANY and change > 20 and tiles <= 0.5
    other_light = relit(before.picture, after.picture)
    if other_light < _RELIT and tiles > 0.5:
        return False
    if likest > _DOUBTFUL:
        return unrest < 1 and visible > _MOST_OF_IT and tiles < 0.3 and other_light > 0.3
    if likest > _OTHER:
        return visible > _MOST_OF_IT and (unrest < _CALM or change > (2.5 if tiles < 0.2 else 7) * unrest)
    if tiles > (0.35 if visible < _MOST_OF_IT else 0.5):
        # a caption before a running shot keeps most colours; a slide has nothing that moves
        recoloured = colour_distance(before, after) > 0.36 and hue_distance(before, after) > 0.45
        return unrest < _STILL or (recoloured and change > 6 * unrest)
    contrast = min(spread(before.luma), spread(after.luma))
    if change < 0.9 * contrast and contrast < 40:
        return likest < 0.33 and (colour_distance(before, after) > 0.19 or hue_distance(before, after) > 0.3)
    return True


def _change(a: Look, b: Look) -> float:
    return float(cv2.norm(a.picture, b.picture, cv2.NORM_L1)) / a.picture.size
