"""Gradual transitions: dissolves, wipes, pushes and fades, with their extent.

A window from one look to a later one may hold a transition when the picture changes more within it than within as long
a time before and after. Whether it does is weighed by ``curation.evidence``; fades by way of a picture of one colour
are found by ``curation.fades``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from curation import evidence, fades
from curation.evidence import GRID, Window
from curation.likeness import SIZE, Look, contrasts

_LAGS = (1, 2, 3, 4, 5, 7, 10, 12, 14, 16, 19, 20, 25, 32, 40)  # over which change is measured, in looks
_LENGTHS = (5, 7, 10, 14, 19, 25, 32, 40)  # of windows
_LONGEST = _LAGS[-1]
_LONGEST_S = 3.0
_CHANGE = 4.0  # mean change of the cells (of 255) from one end of a window to the other
_AGAINST_HALF = 1.2  # times the change within half as long a time before and after it
_AGAINST_FULL = 1.1  # times the change within as long a time before and after it
_NEAR = 2  # looks; of windows that end so near to each other, one is weighed
_SPLINTER = 4  # frames between two transitions are part of them
_RIM = 6  # a transition is taken to be longer than it looks by this part of its length on either side
_STILL_MIXED = 0.5  # of the unexplained change within a transition; where it is less, the transition is over


class Transitions:
    """Feed looks one by one, with the hard cuts that are known already; learn where shots end and begin."""

    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._grids = np.zeros((0, GRID[0] * GRID[1] * 3), np.float32)
        self._contrast = np.zeros((0, 2))  # as `contrasts` has it
        self._changes = np.zeros((0, len(_LAGS)), np.float32)  # to the look a lag earlier; 0 where it is another shot's
        self._shots = np.zeros(0, np.int64)  # position of the first look of each look's shot; may be negative
        self._new_shots: list[bool] = []  # of the looks that are not measured yet
        self._windows: list[Window] = []  # transitions that a better one may still overlap
        self._spans: list[tuple[int, int]] = []  # decided but not reported: first and end of the mixed frames
        self._cuts: list[int] = []  # hard cuts, not reported yet
        self._ready = 0  # windows that end before this have been weighed
        self._faded = 0  # fades whose blank looks begin before this are known
        self.settled = 0  # nothing will be reported any more that begins before this frame

    def push(self, look: Look, cut: int | None) -> None:
        """Take the next look; ``cut`` is the first frame of a shot that begins with it or shortly before it."""
        if cut is not None:
            self._cuts.append(cut)
        self._looks.append(look)
        self._new_shots.append(cut is not None)

    def found(self, *, final: bool = False) -> list[tuple[int, int]]:
        """(end, start) frame indices of what was found since: a hard cut has one for both."""
        if self._new_shots:
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
        pictures = np.concatenate([look.picture for look in self._looks[known:]])
        cells = cv2.resize(pictures, (GRID[0], GRID[1] * (count - known)), interpolation=cv2.INTER_AREA)
        self._grids = np.concatenate([self._grids, cells.reshape(count - known, -1).astype(np.float32)])
        grey = cv2.cvtColor(pictures, cv2.COLOR_BGR2GRAY).reshape(count - known, SIZE[1], SIZE[0])
        for look, own in zip(self._looks[known:], grey, strict=True):
            look.grey = own
        self._contrast = np.concatenate([self._contrast, contrasts(grey)])
        shots = self._shots.tolist()
        for i, new in enumerate(self._new_shots, known):
            shots.append(i if new or not shots else shots[-1])
        self._shots, self._new_shots = np.array(shots, np.int64), []
        changes = np.zeros((count - known, len(_LAGS)), np.float32)
        rows = np.arange(known, count)
        for k, lag in enumerate(_LAGS):
            at = rows[rows - lag >= np.maximum(self._shots[known:], 0)]
            if len(at):
                steps = cv2.absdiff(self._grids[at], self._grids[at - lag])
                changes[at - known, k] = cv2.reduce(steps, 1, cv2.REDUCE_AVG)[:, 0]
        self._changes = np.concatenate([self._changes, changes])

    def _find_windows(self, final: bool) -> None:
        """Weigh the windows with much more change between their ends than within as long a time before and after."""
        end = len(self._looks) - (0 if final else _LONGEST + _NEAR)
        if end <= self._ready:
            return
        low = max(0, self._ready - _NEAR)
        padded = np.concatenate([self._changes, np.zeros((_LONGEST + _NEAR, len(_LAGS)), np.float32)])
        rows = np.arange(low, end + _NEAR)
        before, after = most_around(padded)
        for length in _LENGTHS:
            at = _LAGS.index(length)
            change = padded[rows, at]
            if not (change >= _CHANGE).any():
                continue
            starts, short = np.maximum(rows - length, 0), np.searchsorted(_LAGS, length // 2, "right") - 1
            half, full = (np.stack([before[starts, k], after[rows, k]]) for k in (short, at))
            lead = change - (half[0] + half[1]) / 2
            enough = (change >= _CHANGE) & (change >= _AGAINST_HALF * half.max(axis=0))
            enough &= change + 0.5 >= _AGAINST_FULL * (full.max(axis=0) + 0.5)
            if not enough.any():
                continue
            lead[~enough] = -np.inf
            around = np.pad(lead, _NEAR, constant_values=-np.inf)
            highest = np.max([around[k : k + len(lead)] for k in range(2 * _NEAR + 1)], axis=0)
            for k in np.flatnonzero(enough & (lead >= highest) & (rows >= self._ready) & (rows < end)).tolist():
                self._weigh(int(rows[k]) - length, int(rows[k]), float(change[k]), half[:, k], full[:, k])
        self._ready = end

    def _weigh(self, first: int, last: int, change: float, half: np.ndarray, full: np.ndarray) -> None:
        if self._looks[last].t_s - self._looks[first].t_s > _LONGEST_S:
            return
        low, high = max(int(self._shots[first]), 0), self._shot_end(last - 1)
        window = Window(self._looks, self._grids, first, last, (low, high), change, half, full)
        window.score = evidence.verdict(window)
        if window.score > 0:
            self._windows.append(window)

    def _decide(self, final: bool) -> None:
        """Of overlapping windows keep the best, once no other can join them any more."""
        open_from = len(self._looks) if final else self._ready - _LONGEST
        waiting: list[Window] = []
        groups: list[list[Window]] = []
        for window in sorted(self._windows, key=lambda w: (w.first, w.last)):
            if groups and window.first < max(w.last for w in groups[-1]):
                groups[-1].append(window)
            else:
                groups.append([window])
        for group in groups:
            if max(w.last for w in group) > open_from:
                waiting += group
            else:
                self._choose(group)
        self._windows = waiting

    def _choose(self, group: list[Window]) -> None:
        chosen: list[Window] = []
        for window in sorted(group, key=lambda w: -w.score):
            apart = all(window.last <= other.first or window.first >= other.last for other in chosen)
            if apart:
                chosen.append(window)
                self._spans.append(self._extent(window))

    def _extent(self, window: Window) -> tuple[int, int]:
        """The frames that are mixed, with some more on each side: where change goes on that motion does not explain."""
        done = window.progress
        mixed = np.flatnonzero((done > 0.03) & (done < 0.97))
        low, high = (int(mixed[0]), int(mixed[-1])) if len(mixed) else (0, len(done) - 1)
        first, last = window.first + 1 + low, window.first + 1 + high  # of the mixed looks
        strange = [window.strange(i) for i in range(first, last + 1)]
        median, (begin, end) = float(np.median(strange)), window.shot
        before, after = (_STILL_MIXED * median + (1 - _STILL_MIXED) * min(rest, median) for rest in window.rest)
        beyond = 2 + (window.last - window.first) // 2
        while first - 1 > max(begin, window.first - beyond) and window.strange(first - 1) > before:
            first -= 1
        while last + 1 < min(end, window.last + beyond) and window.strange(last + 1) > after:
            last += 1
        rim = 3 + (last - first) // _RIM
        return self._looks[max(first - rim, begin)].frame + 1, self._looks[min(last + rim, end - 1)].frame

    def _find_fades(self, final: bool) -> None:
        self._faded = min(self._fades_from(self._faded, contrast, final) for contrast in self._contrast.T)

    def _fades_from(self, i: int, contrast: np.ndarray, final: bool) -> int:
        """Find fades from the i-th look on by this contrast; return from where on it is still open."""
        end = len(self._looks) - (0 if final else 2 * fades.LONGEST)
        if end <= i or contrast[max(0, i - 1) : end + 1].min() > fades.LOW * contrast.max():
            return max(i, end)
        blank = fades.is_blank(self._looks, contrast)
        while i < end:
            first = i
            while i < len(blank) and blank[i]:
                i += 1
            if i == first:
                i += 1
                continue
            if i + fades.LONGEST > len(blank) and not final:  # it is not known yet how it goes on
                i = first
                break
            fade = fades.fade_at(self._looks, contrast, first, i - 1)
            if fade is not None:
                self._spans.append((self._looks[fade.last].frame + 1, self._looks[fade.first].frame))
        return i

    def _shot_end(self, i: int) -> int:
        following = np.flatnonzero(self._shots[i + 1 :] > i)
        return i + 1 + int(following[0]) if len(following) else len(self._looks)

    def _settle(self, final: bool) -> None:
        waiting = (window.first - _LONGEST for window in self._windows)
        oldest = min([self._ready - 2 * _LONGEST, self._faded - fades.LONGEST - 2, *waiting])
        if final:
            self.settled = self._looks[-1].frame + 1 if self._looks else self.settled
        elif oldest > 0:
            self.settled = max(self.settled, self._looks[oldest].frame)

    def _report(self, final: bool) -> list[tuple[int, int]]:
        merged = merge(self._spans, self._cuts)
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
        self._contrast = self._contrast[drop:]
        self._shots = np.maximum(self._shots[drop:] - drop, -1)
        self._ready, self._faded = self._ready - drop, self._faded - drop
        for window in self._windows:
            window.shift(drop, self._looks, self._grids)


def most_around(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most change within up to each lag before each look, and after it."""
    ahead = np.zeros_like(changes)
    for k, lag in enumerate(_LAGS):
        ahead[:-lag, k] = changes[lag:, k]
    return np.maximum.accumulate(changes, axis=1), np.maximum.accumulate(ahead, axis=1)


def merge(spans: Sequence[tuple[int, int]], cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Join transitions that touch or nearly do, unless a hard cut lies between them."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + _SPLINTER and not any(merged[-1][1] <= c <= start for c in cuts):
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
