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
_EDGE = 0.35  # line heights by which a box is off from frame to frame while the text is the same
_STANDS_PX = 1.0  # a shift of the letters up to this is none
_CHANGED = 5.0  # mean difference in grey levels from which surroundings have changed; compression makes 1 to 3
_EVERYWHERE = 0.4  # share of spots of the picture that change when the camera moves
_SPOT_PX = 16


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
    for track in everything:
        track.votes += _overall(frames, track)
    return everything


def _overall(frames: np.ndarray, track: Track) -> float:
    """What the way from the first frame of a track to its last says, which counts as much as all steps together.

    Slow growth and drift are too small to be seen step by step.
    """
    (i, first), (k, last) = track.lines[0], track.lines[-1]
    if len(track.lines) < 3 or not _alike(first, last) or _slid(first, last):
        return 0.0
    return _follow(_Step(frames[i], frames[k], first), [(0, last)])[1] * (len(track.lines) - 1)


@dataclasses.dataclass
class _Step:
    """A line of text and the pictures before and after one step in time."""

    before: np.ndarray
    after: np.ndarray
    line: Line

    def surroundings_changed(self) -> bool:
        """Whether the picture changes around the line, or in many places: a pan does not show before a clear sky."""
        height = self.line.height_px
        x0, y0, x1, y1 = _box(self.line)
        ring = np.full(self.before.shape, 0, np.uint8)
        _fill(ring, (x0 - height, y0 - height, x1 + height, y1 + height), 255)
        _fill(ring, (x0 - 0.25 * height, y0 - 0.25 * height, x1 + 0.25 * height, y1 + 0.25 * height), 0)
        return _change(self.before, self.after, ring) > _CHANGED or self._everything_changed()

    def _everything_changed(self) -> bool:
        size = [max(1, side // _SPOT_PX) for side in self.before.shape[::-1]]
        spots = cv2.resize(cv2.absdiff(self.before, self.after), size, interpolation=cv2.INTER_AREA)
        return float(np.mean(spots > _CHANGED)) > _EVERYWHERE

    def strip_stands(self, other: Line) -> bool:
        """Whether the picture stays as it is just above and below a line that moved sideways to ``other``."""
        height = self.line.height_px
        (x0, y0, x1, y1), there = _box(self.line), _box(other)
        strips = np.zeros(self.before.shape, np.uint8)
        left, right = min(x0, there[0]), max(x1, there[2])
        _fill(strips, (left, y0 - 0.28 * height, right, y1 + 0.28 * height), 255)
        _fill(strips, (left, y0 - 0.12 * height, right, y1 + 0.12 * height), 0)
        return _level(self.line, other) and _change(self.before, self.after, strips) <= _CHANGED

    def letters_stand(self) -> bool:
        """Whether the letters at both ends of the line are found again where they were."""
        x0, y0, x1, y1 = _box(self.line)
        end = min((x1 - x0) / 2, 2 * (y1 - y0))
        return all(self._stands(np.array([left, y0, left + end, y1])) for left in (x0, x1 - end))

    def _stands(self, box: np.ndarray) -> bool:
        left, top, right, bottom = _inside(box, self.before)
        near = _inside(box + np.array([-1, -1, 1, 1]) * max(2.0, 0.5 * self.line.height_px), self.after)
        letters, area = self.before[top:bottom, left:right], self.after[near[1] : near[3], near[0] : near[2]]
        found = cv2.minMaxLoc(cv2.matchTemplate(area, letters, cv2.TM_CCOEFF_NORMED))[3]
        return max(abs(found[0] + near[0] - left), abs(found[1] + near[1] - top)) <= _STANDS_PX


def _follow(step: _Step, lines: list[tuple[int, Line]]) -> tuple[int | None, float]:
    """The line that continues ``step.line`` among numbered ones, and what the step says: 1 laid over, -1 scene."""
    line = step.line
    for k, other in lines:
        if _same_place(line, other) and not _alike(line, other):
            return k, 1.0  # a subtitle or a counter that changes where it stands
        if _same_place(line, other) or (_alike(line, other) and _level(line, other)):
            if step.letters_stand():
                return k, 1.0 if step.surroundings_changed() else 0.0
            if _same_place(line, other):
                return k, 1.0 if _slid(line, other) else -1.0  # a ticker; or it drifts
    for k, other in lines:
        if _alike(line, other):
            grown = line.string == other.string and abs(line.width_px - other.width_px) > _EDGE * line.height_px
            return k, 1.0 if step.strip_stands(other) and not grown else -1.0
    for k, other in lines:
        if _same_strip(line, other):
            passing = _shared(line, other) >= _SHARED
            return k, -1.0 if passing and not step.strip_stands(other) else 1.0
    return None, -0.5 if step.surroundings_changed() else 0.0


def _fill(mask: np.ndarray, box: tuple[float, float, float, float], value: int) -> None:
    left, top, right, bottom = _inside(np.array(box), mask)
    mask[top:bottom, left:right] = value


def _change(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Mean difference under the mask, in grey levels, beyond what making all of it lighter or darker explains."""
    difference = after[mask > 0].astype(np.float32) - before[mask > 0]
    return float(np.abs(difference - difference.mean()).mean()) if difference.size else 0.0


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


def _level(one: Line, other: Line) -> bool:
    """Whether two lines stand at the same height."""
    a, b = _box(one), _box(other)
    tolerance = _EDGE * min(one.height_px, other.height_px) + 1
    return abs(a[1] - b[1]) <= tolerance and abs(a[3] - b[3]) <= tolerance


def _same_strip(one: Line, other: Line) -> bool:
    """Whether two lines stand at the same height, one over the other for the most part."""
    a, b = _box(one), _box(other)
    common = min(a[2], b[2]) - max(a[0], b[0])
    return _level(one, other) and common >= 0.5 * min(a[2] - a[0], b[2] - b[0])


def _alike(one: Line, other: Line) -> bool:
    """Whether two lines say the same, as far as was read; of what could not be read the length has to do."""
    if not one.string or not other.string:
        return one.string == other.string and abs(one.width_px - other.width_px) <= _EDGE * one.height_px
    return difflib.SequenceMatcher(None, one.string, other.string, autojunk=False).ratio() >= _ALIKE


def _shared(one: Line, other: Line) -> float:
    """Longest piece that both strings have, as a share of the shorter one."""
    shorter = min(len(one.string), len(other.string))
    return _common(one, other).size / shorter if shorter else 0.0


def _slid(one: Line, other: Line) -> bool:
    """Whether one string is the other, moved on."""
    common = _common(one, other)
    return _shared(one, other) >= _SHARED and common.a != common.b


def _common(one: Line, other: Line) -> difflib.Match:
    return difflib.SequenceMatcher(None, one.string, other.string, autojunk=False).find_longest_match()
