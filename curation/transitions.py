"""Gradual transitions: fades, dissolves and wipes, with their extent.

Where nothing but the camera and things in the picture move, the change from one frame to the next is explained by
motion. In a dissolve or wipe it is not: each part of the picture goes in a straight line from what the old shot shows
to what the new one shows, and the two have neither structure nor colours in common. A fade goes to or from a picture of
one colour. The linear model is that of twin comparison (Zhang et al. 1993) and later work, applied cell by cell, so
that a wipe is a mixture too; thresholds are measured with benchmarks/shots.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from curation import likeness
from curation.likeness import colour_distance, mixture_fit, not_motion, same_structure, same_tiles

_FPS = 32.0  # frames are looked at no denser than this
_LAGS = (2, 3, 4, 5, 7, 10, 14, 19, 25, 32, 40)  # over which change is measured, in frames
_SHORTEST = 5  # window
_LONGEST = _LAGS[-1]
_EVERY = 16  # frames between two looks at what has come in
_CHANGE = 2.5  # mean change of the cells (of 255) from one end of a window to the other
_AGAINST_CONTEXT = 1.2  # times the change within as long a time before and after it
_RESIDUE = 0.12  # share of the change that the straight line does not explain
_TRIES = 3  # windows that are looked at closely for each place
_LOW = 0.2  # a frame of one colour has less than this share of the contrast around it
_SPLINTER = 4  # frames between two transitions are part of them
_STILL_MIXED = 0.5  # of the unexplained change within a transition; where it is less, the transition is over
_BEYOND = 12  # looks that a transition may be longer than its window on each side
_MIN_FADE = 3  # frames; what is shorter is a cut


class Look(NamedTuple):
    """What is remembered of a frame."""

    frame: int
    picture: np.ndarray  # at likeness.SIZE
    contrast: float
    new_shot: bool


class Window(NamedTuple):
    """A stretch in which the picture may turn into another one, from the last look before to the first after."""

    score: float
    first: int
    last: int
    ratio: float
    residue: float


class Transitions:
    """Feed frames one by one, with the hard cuts that are known already; learn where shots end and begin.

    Everything is decided from what lies within some hundred frames, so it makes no difference where the feeding began.
    """

    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._grids = np.zeros((0, 120), np.float32)
        self._shots = np.zeros(0, np.int64)  # position of the first look of each look's shot; may be negative
        self._changes = np.zeros((0, len(_LAGS)), np.float32)  # to the look a lag earlier; 0 where it is another shot's
        self._windows: list[Window] = []  # not decided yet
        self._spans: list[tuple[int, int]] = []  # decided but not reported: first and end of the mixed frames
        self._cuts: list[int] = []  # hard cuts, not reported yet
        self._ready = 0  # windows that end before this are known
        self._faded = 0  # fades whose darkest look lies before this are known
        self._point = -1.0
        self._is_new = False
        self.settled = 0  # nothing will be reported any more that begins before this frame

    def push(self, index: int, t_s: float, picture: np.ndarray, *, new_shot: bool) -> None:
        """Take the next frame at ``likeness.SIZE``; ``new_shot``: a hard cut lies before it."""
        if new_shot:
            self._cuts.append(index)
        self._is_new |= new_shot
        point = float(np.floor(t_s * _FPS + 1e-6))
        if point > self._point or self._is_new:
            self._point = point
            self._looks.append(Look(index, picture, likeness.contrast(picture), self._is_new))
            self._is_new = False

    def found(self, *, final: bool = False) -> list[tuple[int, int]]:
        """(end, start) frame indices of what was found since: a hard cut has one for both."""
        if len(self._looks) - len(self._grids) < _EVERY and not final:
            return []
        self._measure()
        self._find_fades(final)
        self._find_windows(final)
        self._decide(final)
        self._settle(final)
        reports = self._report(final)
        self._forget()
        return reports

    def _measure(self) -> None:
        """Take in the looks that are new."""
        known, count = len(self._grids), len(self._looks)
        if known == count:
            return
        fresh = [likeness.grid(look.picture) for look in self._looks[known:]]
        self._grids = np.concatenate([self._grids, np.stack(fresh)])
        shots = self._shots.tolist()
        for i in range(known, count):
            shots.append(i if self._looks[i].new_shot or not shots else shots[-1])
        self._shots = np.array(shots, np.int64)
        changes = np.zeros((count - known, len(_LAGS)), np.float32)
        rows = np.arange(known, count)
        for k, lag in enumerate(_LAGS):
            same_shot = (rows - lag >= 0) & (rows - lag >= self._shots[known:])
            at = rows[same_shot]
            changes[same_shot, k] = np.abs(self._grids[at] - self._grids[at - lag]).mean(axis=1)
        self._changes = np.concatenate([self._changes, changes])

    def _find_windows(self, final: bool) -> None:
        """Windows with much more change between their ends than within as long a time before and after."""
        end = len(self._looks) - (0 if final else _LONGEST)
        rows = np.arange(self._ready, max(self._ready, end))
        if len(rows) == 0:
            return
        before = np.maximum.accumulate(self._changes, axis=1)
        padded = np.concatenate([self._changes, np.zeros((_LONGEST, len(_LAGS)), np.float32)])
        after = np.stack([padded[rows + lag, k] for k, lag in enumerate(_LAGS)], axis=1)
        after = np.maximum.accumulate(after, axis=1)
        for k, lag in enumerate(_LAGS):
            if lag < _SHORTEST:
                continue
            change = self._changes[rows, k]
            context = np.maximum(before[np.maximum(rows - lag, 0), k], after[:, k])
            for i in np.flatnonzero((change >= _CHANGE) & (change >= _AGAINST_CONTEXT * context)):
                first, last = int(rows[i]) - lag, int(rows[i])
                residue = self._residue(first, last)
                if residue <= _RESIDUE:
                    score = float(change[i] - before[max(first, 0), k] - after[i, k])
                    self._windows.append(Window(score, first, last, float(change[i] / max(1.0, context[i])), residue))
        self._ready = int(rows[-1]) + 1

    def _cells(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How far each cell has gone (T C, 0..1), how much it changes in all (C), and what is left over (T)."""
        way = (self._grids[last] - self._grids[first]).reshape(-1, 3)
        gone = (self._grids[first + 1 : last] - self._grids[first]).reshape(last - first - 1, -1, 3)
        weight = (way**2).sum(axis=1)
        share = np.clip((gone * way).sum(axis=2) / (weight + 30.0), 0, 1)
        left = ((gone - share[..., None] * way) ** 2).sum(axis=(1, 2)) / (weight.sum() + 1e-6)
        return share, weight, left

    def _residue(self, first: int, last: int) -> float:
        """What a mixture leaves unexplained: change off the straight line, and cells that turn back on it."""
        share, weight, left = self._cells(first, last)
        back = (np.maximum.accumulate(share, axis=0) - share).mean(axis=0)
        return float(left.mean() + (back * weight).sum() / (weight.sum() + 1e-6))

    def _decide(self, final: bool) -> None:
        """Decide groups of overlapping windows, once no window can join them any more."""
        open_from = len(self._looks) if final else self._ready - _LONGEST
        waiting: list[Window] = []
        group: list[Window] = []
        end = -1
        for window in sorted(self._windows, key=lambda w: (w.first, w.last)):
            if group and window.first >= end:
                waiting += self._choose(group) if end <= open_from else group
                group = []
            group.append(window)
            end = max(end if len(group) > 1 else -1, window.last)
        if group:
            waiting += self._choose(group) if end <= open_from else group
        self._windows = waiting

    def _choose(self, group: list[Window]) -> list[Window]:
        """Keep the best windows of a group that stand a close look."""
        tried: list[Window] = []
        for window in sorted(group, reverse=True):
            span = self._looks[window.first].frame + 1, self._looks[window.last].frame
            if any(span[0] < end and span[1] > start for start, end in self._spans):
                continue
            if sum(window.first < other.last and window.last > other.first for other in tried) < _TRIES:
                tried.append(window)
                if self._is_transition(window):
                    self._spans.append(self._extent(window))
        return []

    def _is_transition(self, window: Window) -> bool:
        a, b = self._looks[window.first].picture, self._looks[window.last].picture
        length = window.last - window.first
        alike = same_structure(a, b)
        if alike > 0.55:
            return False
        colours = colour_distance(a, b)
        mixed = mixture_fit(a, self._looks[(window.first + window.last) // 2].picture, b)
        strange = not_motion([look.picture for look in self._looks[window.first : window.last + 1]])
        if length <= 10 and mixed <= 0.2 and strange <= 0.75:  # a whip pan
            return False
        if colours > 0.54 and window.residue <= 0.08 and window.ratio > 1.3:
            telling = mixed > 0.05 or strange > 0.5 or (strange > 0.4 and window.ratio > 1.8)
            if telling or (colours > 0.8 and window.ratio > 2):
                return True
        if window.ratio < (3 if length <= 8 else 1.8):  # fire, confetti; pans
            return False
        if colours > 0.35 and (mixed > 0.8 or (mixed > 0.1 and length > 9)):
            return True
        return mixed > 0.6 and strange > 0.6 and alike < 0.45 and self._covers(window) and same_tiles(a, b) < 0.7

    def _covers(self, window: Window) -> bool:
        """Whether the whole picture changes, and not a part of it as when a caption comes up."""
        change = np.abs(self._grids[window.first] - self._grids[window.last]).reshape(-1, 3).mean(axis=1)
        return float(np.minimum(change, change.mean()).mean()) > 0.6 * float(change.mean())

    def _extent(self, window: Window) -> tuple[int, int]:
        """The frames that are mixed, with one more on each side: where change goes on that motion does not explain."""
        share, weight, _ = self._cells(window.first, window.last)
        done = (share * weight).sum(axis=1) / (weight.sum() + 1e-6)
        mixed = np.flatnonzero((done > 0.03) & (done < 0.97))
        low, high = (int(mixed[0]), int(mixed[-1])) if len(mixed) else (0, len(done) - 1)
        first, last = window.first + 1 + low, window.first + 1 + high  # of the mixed looks
        strange = [self._strange(i) for i in range(first, last + 1)]
        enough = _STILL_MIXED * float(np.median(strange))
        while first - 1 > max(self._shots[first], window.first - _BEYOND, 0) and self._strange(first) > enough:
            first -= 1
        end = min(self._shot_end(last), window.last + _BEYOND)
        while last + 1 < end and self._strange(last + 1) > enough:
            last += 1
        return self._looks[max(first - 2, self._shots[first], 0)].frame + 1, self._looks[min(last + 2, end - 1)].frame

    def _strange(self, i: int) -> float:
        return likeness.unexplained(self._looks[i - 1].picture, self._looks[i].picture)[0]

    def _find_fades(self, final: bool) -> None:
        """Stretches of one colour with a slow way there, or back, or both."""
        contrast = np.array([look.contrast for look in self._looks])
        i = self._faded
        end = len(contrast) - (0 if final else 2 * _LONGEST + 4)
        while i < end:
            low, high = int(max(self._shots[i], 0)), self._shot_end(i)
            if not self._is_low(contrast, i, low, high):
                i += 1
                continue
            j = i
            while j + 1 < high and self._is_low(contrast, j + 1, low, high):
                j += 1
            if j >= end and not final:
                break  # not over yet
            left, right = _climb(contrast, i, -1, low, high), _climb(contrast, j, 1, low, high)
            self._add_fade(left, i, j, right, low)
            i = max(j, right) + 1
        self._faded = i

    def _is_low(self, contrast: np.ndarray, i: int, low: int, high: int) -> bool:
        around = contrast[max(low, i - _LONGEST) : min(high, i + _LONGEST + 1)].max()
        return bool(around >= 6 and contrast[i] <= _LOW * around)

    def _shot_end(self, i: int) -> int:
        following = np.flatnonzero(self._shots[i + 1 :] > i)
        return i + 1 + int(following[0]) if len(following) else len(self._shots)

    def _add_fade(self, left: int, i: int, j: int, right: int, low: int) -> None:
        out, back = i - left >= _MIN_FADE, right - j >= _MIN_FADE
        flash = right > j and left < i and same_structure(self._looks[left].picture, self._looks[right].picture) > 0.5
        if flash or not (out or back):
            return
        first = left + 1 if out else (low if i - low <= 2 else i)
        start = self._looks[right].frame if right > j else self._looks[j].frame + 1
        self._spans.append((self._looks[first].frame if first != left + 1 else self._looks[left].frame + 1, start))

    def _settle(self, final: bool) -> None:
        oldest = min([self._ready - _LONGEST, self._faded - _LONGEST - 2, *(w.first for w in self._windows)])
        if final:
            self.settled = self._looks[-1].frame + 1 if self._looks else self.settled
        elif oldest > 0:
            self.settled = max(self.settled, self._looks[oldest].frame)

    def _report(self, final: bool) -> list[tuple[int, int]]:
        spans = sorted(self._spans)
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and start <= merged[-1][1] + _SPLINTER:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        cuts = [cut for cut in self._cuts if not any(start <= cut <= end for start, end in merged)]
        before = self.settled - _SPLINTER
        done = sorted(span for span in [*merged, *((cut, cut) for cut in cuts)] if final or span[1] < before)
        self._spans = [span for span in merged if span not in done]
        self._cuts = [cut for cut in cuts if (cut, cut) not in done]
        return done

    def _forget(self) -> None:
        """Drop looks that nothing undecided can touch."""
        drop = min(self._ready, self._faded, *(w.first for w in self._windows), len(self._grids)) - 3 * _LONGEST
        if drop < _LONGEST:
            return
        self._looks = self._looks[drop:]
        self._grids, self._changes = self._grids[drop:], self._changes[drop:]
        self._shots = np.maximum(self._shots[drop:] - drop, -1)
        self._ready, self._faded = self._ready - drop, self._faded - drop
        self._windows = [w._replace(first=w.first - drop, last=w.last - drop) for w in self._windows]


def _climb(contrast: np.ndarray, i: int, step: int, low: int, high: int) -> int:
    """Go from a look of one colour to where contrast no longer rises; the way is no longer than a fade."""
    best = j = i
    missed = 0
    while low <= j + step < high and abs(j - i) < _LONGEST + 5 and missed < 2:
        j += step
        if contrast[j] > contrast[best] + max(0.25, 0.012 * contrast[best]):
            best, missed = j, 0
        else:
            missed += 1
    return best
