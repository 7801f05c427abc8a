"""Telling text that was laid over the picture from text that belongs to the scene.

What was laid over does not go with the scene: it keeps its place while what is around it changes, or changes in its
place while what is around it stays. Text of the scene goes where its surroundings go. Where nothing changes, nothing
can be told. Pictures are uint8 H W (grey).
"""

from __future__ import annotations

import dataclasses
import difflib

import cv2
import numpy as np

from filters.reading import Line

_ALIKE = 0.8  # similarity of strings, 0..1, from which they are one string read twice
_SHARED = 0.5  # share of the shorter string that both have in one piece when a string is moving past an edge
_EDGE = 0.35  # line heights that an edge of a box is off from frame to frame while the text stands still
_STANDS_PX = 1.0  # a shift of the letters up to this is none
_CHANGED = 6.0  # mean difference in grey levels from which surroundings have changed; compression makes 1 to 3


@dataclasses.dataclass
class Track:
    """One text through the frames: ``votes`` above nought for laid over, below for scene, nought for cannot tell."""

    lines: list[tuple[int, Line]]  # frame, line
    votes: float = 0.0


def tracks(frames: np.ndarray, found: list[list[Line]]) -> list[Track]:
    """Follow the lines of text from frame to frame and gather what each step says about them.

    Args:
        frames: grey pictures T H W.
        found: the lines of each frame.
    """
    everything: list[Track] = []
    before: list[Track] = []
    for i, lines in enumerate(found):
        now = [Track([(i, line)]) for line in lines]
        free = set(range(len(lines)))
        for track in before:
            line = track.lines[-1][1]
            step = _Step(frames[i - 1], frames[i], line)
            match, vote = _follow(step, [(k, lines[k]) for k in sorted(free)])
            track.votes += vote
            if match is not None:
                free.discard(match)
                track.lines.append((i, lines[match]))
                now[match] = track
        everything += [track for track in now if track.lines[0][0] == i]
        before = now
    return everything


@dataclasses.dataclass
class _Step:
    """A line of text and the pictures before and after one step in time."""

    before: np.ndarray
    after: np.ndarray
    line: Line

    def surroundings_changed(self) -> bool:
        """Whether the picture changes in a band around the line, one line height wide."""
        height = self.line.height_px
        x0, y0, x1, y1 = _box(self.line)
        inner = np.array([x0 - 0.25 * height, y0 - 0.25 * height, x1 + 0.25 * height, y1 + 0.25 * height])
        outer = np.array([x0 - height, y0 - height, x1 + height, y1 + height])
        (left, top, right, bottom), cut = _inside(outer, self.before), _inside(inner, self.before)
        difference = cv2.absdiff(self.before[top:bottom, left:right], self.after[top:bottom, left:right])
        ring = np.full(difference.shape, 255, np.uint8)
        ring[cut[1] - top : cut[3] - top, cut[0] - left : cut[2] - left] = 0
        return cv2.countNonZero(ring) > 0 and cv2.mean(difference, ring)[0] > _CHANGED

    def letters_stand(self) -> bool:
        """Whether the letters themselves are found again where they were."""
        height = self.line.height_px
        box = np.array(_box(self.line))
        left, top, right, bottom = _inside(box, self.before)
        near = _inside(box + np.array([-1, -1, 1, 1]) * max(2.0, 0.5 * height), self.after)
        letters, area = self.before[top:bottom, left:right], self.after[near[1] : near[3], near[0] : near[2]]
        found = cv2.minMaxLoc(cv2.matchTemplate(area, letters, cv2.TM_CCOEFF_NORMED))[3]
        return max(abs(found[0] + near[0] - left), abs(found[1] + near[1] - top)) <= _STANDS_PX


def _follow(step: _Step, lines: list[tuple[int, Line]]) -> tuple[int | None, float]:
    """The line that continues ``step.line`` among numbered ones, and what the step says: 1 laid over, -1 scene."""
    for k, other in lines:
        if _same_place(step.line, other):
            if not _alike(step.line.string, other.string) or _slid(step.line.string, other.string):
                return k, 1.0  # a subtitle or a counter that changes where it stands, a ticker
            if not step.surroundings_changed():
                return k, 0.0
            return k, 1.0 if step.letters_stand() else -1.0
    for k, other in lines:
        if _alike(step.line.string, other.string):
            return k, -1.0
    for k, other in lines:
        if _same_strip(step.line, other):
            passing = _shared(step.line.string, other.string) >= _SHARED
            return k, -1.0 if passing and step.surroundings_changed() else 1.0
    return None, -0.5 if step.surroundings_changed() else 0.0


def _box(line: Line) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = line.corners.min(axis=0), line.corners.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def _inside(box: np.ndarray, picture: np.ndarray) -> tuple[int, int, int, int]:
    """The box in whole pixels, within the picture and never empty."""
    height, width = picture.shape
    left, top = min(max(0, int(box[0])), width - 1), min(max(0, int(box[1])), height - 1)
    right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return left, top, max(left + 1, right), max(top + 1, bottom)


def _same_place(one: Line, other: Line) -> bool:
    off = np.abs(np.subtract(_box(one), _box(other)))
    return bool((off <= _EDGE * min(one.height_px, other.height_px) + 1).all())


def _same_strip(one: Line, other: Line) -> bool:
    """Whether two lines stand at the same height, one over the other for the most part."""
    a, b = _box(one), _box(other)
    tolerance = _EDGE * min(one.height_px, other.height_px) + 1
    common = min(a[2], b[2]) - max(a[0], b[0])
    level = abs(a[1] - b[1]) <= tolerance and abs(a[3] - b[3]) <= tolerance
    return level and common >= 0.5 * min(a[2] - a[0], b[2] - b[0])


def _alike(one: str, other: str) -> bool:
    if not one or not other:
        return one == other
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= _ALIKE


def _shared(one: str, other: str) -> float:
    """Longest piece that both strings have, as a share of the shorter one."""
    shorter = min(len(one), len(other))
    return _common(one, other).size / shorter if shorter else 1.0


def _slid(one: str, other: str) -> bool:
    """Whether one string is the other, moved on by letters and more."""
    common = _common(one, other)
    return _shared(one, other) >= _SHARED and abs(common.a - common.b) >= 2


def _common(one: str, other: str) -> difflib.Match:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
