"""Fades: a slow way from a shot to a picture of one colour, or back, or both, with their extent.

While a picture fades, what is where stays the same and contrast falls step by step. A cut to black takes one step; a
text that is written on black changes what is where; after a flash the old picture is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.likeness import Look, same_structure

LONGEST = 45  # looks on one side
_LONGEST_S = 1.8
LOW = 0.2  # a picture of one colour has less than this share of the contrast around it
_LEAST_CONTRAST = 6.0
_SHORTEST = 3  # steps; what is shorter is a cut
_STEEPEST = 0.6  # share of the way that one step may take
_FULL = 0.95  # share of its contrast from which a picture counts as unmixed
_RISE = 0.012  # of contrast, from one look to the next, while the fade goes on
_SAME = 0.5  # correlation of structure


class Fade(NamedTuple):
    """Positions of looks: the last of the old shot, the first of the new one."""

    last: int
    first: int


def is_blank(looks: Sequence[Look], contrast: np.ndarray) -> np.ndarray:
    """Which looks have far less contrast than the most around them."""
    times, where = np.array([look.t_s for look in looks]), np.arange(len(looks))
    low = np.maximum(np.searchsorted(times, times - _LONGEST_S), where - LONGEST).tolist()
    high = np.minimum(np.searchsorted(times, times + _LONGEST_S, "right"), where + LONGEST + 1).tolist()
    around = np.array([contrast[a:b].max() for a, b in zip(low, high, strict=True)])
    return np.asarray((around >= _LEAST_CONTRAST) & (contrast <= LOW * around))


def fade_at(looks: Sequence[Look], contrast: np.ndarray, first: int, last: int) -> Fade | None:
    """The fade around the blank looks ``first`` to ``last``, if it is one."""
    out, back = _climb(looks, contrast, first, -1), _climb(looks, contrast, last, 1)
    if out is None and back is None:
        return None
    # Where a cut leads to black or from it, black belongs to no fade until the picture comes up, or once it is gone.
    low = contrast[first : last + 1] <= contrast[first : last + 1].min() + 0.25
    left = first + int(np.flatnonzero(low)[-1]) if out is None else out
    right = first + int(np.flatnonzero(low)[0]) if back is None else back
    if out is not None and back is not None and same_structure(looks[left], looks[right]) > _SAME:
        return None  # a flash, or the light went out
    return Fade(left, right)


def _climb(looks: Sequence[Look], contrast: np.ndarray, i: int, step: int) -> int | None:
    """Go from a blank look to where the picture is complete; None if that is no fade."""
    best = j = i
    missed = 0
    while 0 <= j + step < len(contrast) and abs(j - i) < LONGEST and missed < 2:
        j += step
        if abs(looks[j].t_s - looks[i].t_s) > _LONGEST_S:
            break
        if contrast[j] > contrast[best] + max(0.25, _RISE * contrast[best]):
            best, missed = j, 0
        else:
            missed += 1
    way = contrast[np.arange(i, best + step, step)]
    if len(way) <= _SHORTEST or np.diff(way).max() > _STEEPEST * (way[-1] - way[0]):
        return None
    full = int(np.argmax(way >= way[0] + _FULL * (way[-1] - way[0])))
    halfway = int(np.argmax(way >= way[0] + 0.4 * (way[-1] - way[0])))
    if full < _SHORTEST or same_structure(looks[i + step * halfway], looks[i + step * full]) < _SAME:
        return None
    return i + step * full
