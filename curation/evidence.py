"""Whether a stretch of pictures holds a gradual transition, weighed from a dozen measures.

Where nothing but the camera, the light and things in the picture change, what changes from one look to the next is
explained by motion or by light. In a dissolve or wipe it is not: each part of the picture goes in a straight line from
what the old shot shows to what the new one shows, and the two have neither structure nor colours in common. The linear
model is that of twin comparison (Zhang et al. 1993) and later work, applied cell by cell, so that a wipe is a
mixture too.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence

import numpy as np

from curation.likeness import Look, colour_distance, mixture_fit, moved_structure, relit, same_structure
from curation.weights import MIXED, MIXED_LIMIT, MOVING, MOVING_LIMIT, Table

GRID = (8, 6)  # cells across, cells down
LEAST = {"covers": 0.56, "colours": 0.1}  # hardly any transition has less
MOST = {"alike": 0.6}
# Log of the share of change that another light leaves unexplained, and 0.02; the correlation of structure from which it
# is the same in another light, which falls the less is left: much is too dark or too bright then to have structure.
_RELIT, _SIMILAR, _SIMILAR_PER_RELIT = -3.3, 0.3, 0.2
_MOVING = 0.45  # share of change that motion leaves unexplained in pans and pushes; more in dissolves
# What counts for pushes differs from what counts for dissolves, so each has its own limit and table.
KINDS: dict[str, tuple[float, Table]] = {"moving": (MOVING_LIMIT, MOVING), "mixed": (MIXED_LIMIT, MIXED)}
_OTHER_KIND = 0.6  # how much surer a mixture must be that is told by what counts for pushes
_NEARBY = 8  # looks before and after that a window is compared with


class Window:
    """A stretch in which the picture may turn into another one, from the last look before to the first after.

    Args:
        looks, grids: of what is kept; grids hold the mean colours of the cells.
        first, last: positions of looks.
        shot: positions of the first look of the shot and of the first after it.
        change: mean change of the cells from one end to the other.
        half, full: most change before, and after, within half its length and within its length.
    """

    def __init__(
        self,
        looks: Sequence[Look],
        grids: np.ndarray,
        first: int,
        last: int,
        shot: tuple[int, int],
        change: float,
        half: np.ndarray,
        full: np.ndarray,
    ) -> None:
        self.looks, self.grids, self.first, self.last, self.shot = looks, grids, first, last, shot
        self.change, self.half, self.full = change, half, full
        self.score = 0.0

    def shift(self, by: int, looks: Sequence[Look], grids: np.ndarray) -> None:
        """The first ``by`` looks were dropped."""
        self.first, self.last, self.shot = self.first - by, self.last - by, (self.shot[0] - by, self.shot[1] - by)
        self.looks, self.grids = looks, grids

    @functools.cached_property
    def way(self) -> np.ndarray:
        """How far each cell goes: C 3."""
        return np.asarray(self.grids[self.last] - self.grids[self.first]).reshape(-1, 3)

    @functools.cached_property
    def weight(self) -> np.ndarray:
        """Squared way of each cell, C; adds up to 1."""
        squared = np.einsum("ck,ck->c", self.way, self.way)
        return np.asarray(squared / (squared.sum() + 1e-6))

    @functools.cached_property
    def share(self) -> np.ndarray:
        """Which share of its way each cell has gone at each look between the ends, T C, 0..1."""
        return np.clip(self._along / (np.einsum("ck,ck->c", self.way, self.way) + 30.0), 0, 1)

    @functools.cached_property
    def _gone(self) -> np.ndarray:
        gone = self.grids[self.first + 1 : self.last] - self.grids[self.first]
        return np.asarray(gone).reshape(self.last - self.first - 1, -1, 3)

    @functools.cached_property
    def _along(self) -> np.ndarray:
        return np.einsum("tck,ck->tc", self._gone, self.way)

    @functools.cached_property
    def progress(self) -> np.ndarray:
        """How far the whole picture has gone at each look between the ends, T, 0..1."""
        return np.asarray(self.share @ self.weight)

    @functools.cached_property
    def within(self) -> float:
        """What motion does not explain, on average."""
        return self._mean_strange(self.first + 1, self.last + 1)

    @functools.cached_property
    def rest(self) -> tuple[float, float]:
        """The same for some time before and after; one stands for the other where a shot begins or ends at once."""
        nearby = min(_NEARBY, self.last - self.first)
        begin, end = max(self.shot[0], self.first - nearby), min(self.shot[1] - 1, self.last + nearby)
        before = self._mean_strange(begin + 1, self.first + 1) if begin < self.first else None
        after = self._mean_strange(self.last + 1, end + 1) if end > self.last else None
        known = [mean for mean in (before, after) if mean is not None] or [0.0]
        return known[0], known[-1]

    def _mean_strange(self, begin: int, end: int) -> float:
        return sum(self.strange(i) for i in range(begin, end)) / (end - begin)

    def strange(self, i: int) -> float:
        """What motion does not explain of the change to the i-th look."""
        return moved_structure(self.looks[i - 1], self.looks[i])[0]


def _log_ratio(a: float, b: float, least: float) -> float:
    return float(np.log((a + least) / (b + least)))


def _largest_step(w: Window) -> float:
    return float(np.diff(w.progress, prepend=0.0, append=1.0).max())


def _abrupt(w: Window) -> float:
    """Share of its way that a cell goes in a fifth of the time: all of it in a wipe, a fifth in a dissolve."""
    none = np.zeros((1, w.share.shape[1]))
    share = np.concatenate([none, w.share, none + 1])
    k = max(1, (w.last - w.first) // 5)
    return float((share[k:] - share[:-k]).max(axis=0) @ w.weight)


def _covers(w: Window) -> float:
    """1 where the whole picture changes alike, less where a part of it does, as when a caption comes up."""
    change = np.abs(w.way).mean(axis=1)
    return float(np.minimum(change, change.mean()).mean() / (change.mean() + 1e-6))


def _unexplained_share(w: Window) -> float:
    steps = [moved_structure(w.looks[i - 1], w.looks[i]) for i in range(w.first + 1, w.last + 1)]
    return sum(left for left, _ in steps) / (sum(change for _, change in steps) + 0.3 * len(steps))


# The cheapest come first: weighing stops as soon as the rest cannot make a transition of it any more.
MEASURES: dict[str, Callable[[Window], float]] = {
    "change": lambda w: float(np.log(w.change)),
    "length": lambda w: float(np.log(w.last - w.first)),
    "more than in half the time at rest": lambda w: _log_ratio(w.change, float(w.half.min()), 0.5),
    "more than in the time around": lambda w: _log_ratio(w.change, float(w.full.max()), 0.5),
    "covers": _covers,
    "colours": lambda w: colour_distance(w.looks[w.first], w.looks[w.last]),
    "alike": lambda w: same_structure(w.looks[w.first], w.looks[w.last]),
    "relit": lambda w: float(np.log(relit(w.grids[w.first], w.grids[w.last]) + 0.02)),
    "largest step": _largest_step,
    "abrupt": _abrupt,
    "mixture": lambda w: mixture_fit(w.looks[w.first], w.looks[(w.first + w.last) // 2], w.looks[w.last]),
    "stranger than at rest": lambda w: _log_ratio(w.within, min(w.rest), 0.4),
    "strange": lambda w: float(np.log(w.within + 0.2)),
    "unexplained share": _unexplained_share,
}


def verdict(window: Window) -> float:
    """Above 0 for a transition; the more, the surer."""
    scores = {kind: -limit for kind, (limit, _) in KINDS.items()}
    values: dict[str, float] = {}
    for name, measure in MEASURES.items():
        values[name] = measure(window)
        for kind, (_, table) in KINDS.items():
            steps, weights = table[name]
            scores[kind] += weights[bisect.bisect_left(steps, values[name])]
        if _is_out(name, values) or all(score + _MOST_LEFT[kind][name] <= 0 for kind, score in scores.items()):
            return -1.0
    if kind_of(values) == "moving":  # a fast pan looks like a mixture, too
        return scores["moving"]
    return max(scores["mixed"], scores["moving"] - _OTHER_KIND)


def measured(window: Window) -> dict[str, float] | None:
    """All measures, unless one rules a transition out: for fitting."""
    values: dict[str, float] = {}
    for name, measure in MEASURES.items():
        values[name] = measure(window)
        if _is_out(name, values):
            return None
    return values


def kind_of(values: dict[str, float]) -> str:
    return "moving" if values["unexplained share"] < _MOVING else "mixed"


def _is_out(name: str, values: dict[str, float]) -> bool:
    if name == "relit" and values["relit"] < _RELIT:
        similar = _SIMILAR + _SIMILAR_PER_RELIT * (values["relit"] - _RELIT)
        return values["alike"] > similar  # the same in another light
    return not LEAST.get(name, values[name]) <= values[name] <= MOST.get(name, values[name])


def _most_left(table: Table) -> dict[str, float]:
    """What the measures after each can add at the most."""
    left, most = 0.0, {}
    for name in reversed(MEASURES):
        most[name] = left
        left += max(table[name][1])
    return most


_MOST_LEFT = {kind: _most_left(table) for kind, (_, table) in KINDS.items()}
