"""Which clips of a million are worth comparing: pairs whose hashes agree somewhere for half a second.

At every step a window of half a second is looked up by two words of K bits: which coefficients of the picture are
positive, and which grow within the next second. The first finds copies of what hardly moves, the second those that
something was laid over. A word is looked up with its least certain bits either way (multi-probe, Lv et al., VLDB 2007),
and as it would be in a mirror. What is found by chance is dropped by the words of the windows around, then by a glance
at what both clips show when they are aligned like that.

Suffixes in this file: S steps of all clips in a row, Q queries, P places found, K coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from filters.alignment import correlation
from filters.video_hash import FEWEST, MIRROR, Hashes, K

_CLIPS_AT_ONCE, _QUERIES_AT_ONCE, _GLANCES_AT_ONCE = 10_000, 50_000, 20_000  # so that most of it stays in the cache
_WORDS_AT_ONCE = 1 << 20
_EVERY = 2  # steps between windows that can be found; those that are looked up begin at every step
_LAG = 4  # steps over which change is looked at
_UNSURE, _UNSURE_MIRRORED = 3, 1  # bits that may be wrong
_MOST_ALIKE = 32  # the best clips with a word; with no bound, a thousand alike would make a million pairs
_STILL = 0.03  # change of less is noise: twice what a still camera's is, of a picture of energy 1
# Bits of K that may differ: of the words of picture and of change, and on average around. By chance 12 do.
_FAR_PICTURE, _FAR_CHANGE, _FAR = 10, 8, 6.0
_AROUND = (-4, -2, 0, 2, 4)  # steps
_GLANCES, _UNLIKE = 8, 0.6  # steps compared, and a correlation too low to look any closer
_MIRRORED = np.uint32(sum(1 << i for i in range(K) if MIRROR[i] < 0))


class Windows:
    """The windows of all clips.

    Attributes:
        clip: S, the position of the clip.
        valid: S, false for the last steps of a clip, where no window begins.
        findable: S, whether a window can be found.
        words: of picture and of change, S each.
        still: S, whether there is no change to speak of.
        asked: for picture and for change, Q each: the windows that are looked up, where a word is new.
        unsure: likewise, Q _UNSURE: the places of the bits that each word is least sure of.
    """

    def __init__(self, hashes: Hashes) -> None:
        count = int(hashes.counts.sum())
        self.clip = np.repeat(np.arange(len(hashes.counts), dtype=np.int32), hashes.counts)
        self.valid, self.findable, self.still = (np.empty(count, bool) for _ in range(3))
        self.words = np.empty(count, np.uint32), np.empty(count, np.uint32)
        asked: tuple[list[np.ndarray], ...] = ([], [])
        unsure: tuple[list[np.ndarray], ...] = ([], [])
        for low in range(0, len(hashes.counts), _CLIPS_AT_ONCE):
            for which, (places, bits) in enumerate(self._fill(hashes, low, low + _CLIPS_AT_ONCE)):
                asked[which].append(places)
                unsure[which].append(bits)
        self.asked = [np.concatenate(parts) for parts in asked]
        self.unsure = [np.concatenate(parts) for parts in unsure]

    def _fill(self, hashes: Hashes, low: int, high: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Do so for some clips; give ``asked`` and ``unsure`` of each word."""
        counts, values = hashes.counts[low:high], hashes.steps(low, high)
        place, ends = np.arange(len(values)), np.repeat(np.cumsum(counts), counts)
        local = place - ends + np.repeat(counts, counts)
        at = np.minimum(place, ends - FEWEST)
        sums = values + np.concatenate([values[1:], values[:1]])
        pictures, changes = sums[at], sums[np.minimum(at + _LAG, ends - 2)] - sums[at]
        begin = int(hashes.first[low])
        span = slice(begin, begin + len(values))
        self.valid[span] = valid = place == at
        self.findable[span] = valid & (local % _EVERY == 0)
        self.still[span] = np.square(changes).sum(axis=1) < _STILL**2
        for which, sizes in enumerate((pictures, changes)):
            self.words[which][span] = words = _words(sizes)
            new = valid & ((local == 0) | np.concatenate([[True], words[1:] != words[:-1]]))
            yield (np.flatnonzero(new) + begin).astype(np.int32), _weakest(sizes[new])


def candidates(packed: pa.ChunkedArray) -> np.ndarray:
    """Pairs of clips that may be copies of each other.

    Args:
        packed: ``video_hash`` of all clips, without nulls. Better clips first: of very many that are alike, only the
            first are compared with the rest.

    Returns:
        N 3, int32, sorted: position of a clip, position of an earlier one, and 1 where one of the two is mirrored.
    """
    hashes = Hashes(packed)
    found = [np.empty((0, 3), np.int32)]
    if len(hashes.counts):
        windows = Windows(hashes)
        for which in (0, 1):
            table = _table(windows, which)
            for first in range(0, len(windows.asked[which]), _QUERIES_AT_ONCE):
                for mirrored in (0, 1):
                    batch = slice(first, first + _QUERIES_AT_ONCE)
                    places = _look_up(windows, which, batch, mirrored, table)
                    found.append(_glance(hashes, windows.clip, *places, mirrored))
    return np.unique(np.concatenate(found), axis=0)


def _words(values: np.ndarray) -> np.ndarray:
    """Which of values S K are positive, as bits of uint32."""
    words = np.zeros((len(values), 4), np.uint8)
    words[:, : K // 8] = np.packbits(values > 0, axis=1, bitorder="little")
    return words.view("<u4").ravel().astype(np.uint32)


def _weakest(values: np.ndarray) -> np.ndarray:
    """The places of the smallest of values Q K: Q _UNSURE."""
    sizes, rows = np.abs(values), np.arange(len(values))
    places = np.empty((len(values), _UNSURE), np.uint8)
    for i in range(_UNSURE):
        places[:, i] = sizes.argmin(axis=1)
        sizes[rows, places[:, i]] = np.inf
    return places


def _table(windows: Windows, which: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows in the order of their words, one for each word of a clip.

    Then, for each of the 2 ** K words, where in it its windows begin, and whether it has any: that is quick to look up.
    """
    order = np.flatnonzero(windows.findable).astype(np.int32)
    words = windows.words[which]
    order = order[np.argsort(words[order], kind="stable")]
    again = (words[order[1:]] == words[order[:-1]]) & (windows.clip[order[1:]] == windows.clip[order[:-1]])
    order = order[np.concatenate([[True], ~again])]
    ordered, begins = words[order], np.zeros((1 << K) + 1, np.int32)
    for low in range(0, 1 << K, _WORDS_AT_ONCE):  # counts are of eight bytes each
        first, last = np.searchsorted(ordered, (low, low + _WORDS_AT_ONCE))
        counts = np.bincount(ordered[first:last] - np.uint32(low), minlength=_WORDS_AT_ONCE)
        begins[low + 1 : low + 1 + _WORDS_AT_ONCE] = first + np.cumsum(counts)
    return order, begins, begins[1:] > begins[:-1]


def _look_up(
    windows: Windows, which: int, batch: slice, mirrored: int, table: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Windows that ask, and windows of better clips that they find: P each."""
    order, begins, present = table
    asked, unsure = windows.asked[which][batch], windows.unsure[which][batch]
    probes = (windows.words[which][asked] ^ _flip(mirrored))[:, None]
    for i in range(_UNSURE_MIRRORED if mirrored else _UNSURE):
        probes = np.concatenate([probes, probes ^ (np.uint32(1) << unsure[:, i : i + 1].astype(np.uint32))], axis=1)
    per, probes = probes.shape[1], probes.ravel()
    some = np.flatnonzero(present[probes])
    begin = begins[probes[some]]
    count = np.minimum(begins[probes[some] + 1] - begin, _MOST_ALIKE)
    query = np.repeat(asked[some // per], count)
    rank = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
    found = order[np.repeat(begin, count) + rank]
    near = windows.clip[found] < windows.clip[query]
    query, found = query[near], found[near]
    for word, far in enumerate((_FAR_PICTURE, _FAR_CHANGE)):
        near = _distance(windows, word, query, found, mirrored) <= far
        query, found = query[near], found[near]
    near = _around(windows, query, found, mirrored) <= _FAR
    return query[near], found[near]


def _flip(mirrored: int) -> np.uint32:
    return _MIRRORED if mirrored else np.uint32(0)


def _distance(windows: Windows, word: int, one: np.ndarray, other: np.ndarray, mirrored: int) -> np.ndarray:
    """Bits that differ; of change none where neither changes."""
    words = windows.words[word]
    bits = np.bitwise_count(words[one] ^ words[other] ^ _flip(mirrored))
    return np.where(windows.still[one] & windows.still[other], 0, bits) if word else bits


def _around(windows: Windows, one: np.ndarray, other: np.ndarray, mirrored: int) -> np.ndarray:
    """Mean distance of the words of the windows around, as far as both clips go."""
    total, count = np.zeros(len(one), np.float32), np.zeros(len(one), np.float32)
    for step in _AROUND:
        near, far = (np.clip(at + step, 0, len(windows.clip) - 1) for at in (one, other))
        inside = (windows.clip[near] == windows.clip[one]) & (windows.clip[far] == windows.clip[other])
        inside &= windows.valid[near] & windows.valid[far]
        for word in (0, 1):
            total += inside * _distance(windows, word, near, far, mirrored)
            count += inside
    return total / np.maximum(count, 1)


def _glance(hashes: Hashes, clip: np.ndarray, query: np.ndarray, found: np.ndarray, mirrored: int) -> np.ndarray:
    """The pairs, N 3 as of ``candidates``, that look alike at a few steps when aligned as they were found."""
    clips = clip[query], clip[found]
    offsets = (found - hashes.first[clips[1]]) - (query - hashes.first[clips[0]])
    rows = np.stack([*clips, offsets], axis=1)
    rows = np.unique(rows, axis=0) if len(rows) else rows.reshape(0, 3)
    alike = [np.empty((0, 3), np.int32)]
    for low in range(0, len(rows), _GLANCES_AT_ONCE):
        one, other, offset = rows[low : low + _GLANCES_AT_ONCE].T
        begin = np.maximum(-offset, 0)
        shared = np.minimum(hashes.counts[one] - begin, hashes.counts[other] - begin - offset)
        steps = begin[:, None] + (np.arange(_GLANCES) * (shared[:, None] - 1)) // (_GLANCES - 1)
        a, b = hashes.at(one, steps), hashes.at(other, steps + offset[:, None])
        near = correlation(a, b * MIRROR if mirrored else b) >= _UNLIKE
        alike.append(np.stack([one[near], other[near], np.full(near.sum(), mirrored)], axis=1).astype(np.int32))
    return np.unique(np.concatenate(alike), axis=0)
