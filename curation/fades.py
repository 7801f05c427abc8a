"""Fades: a slow way from a shot to a picture of one colour, or back, or both, with their extent.

While a picture fades, what is where stays the same and contrast falls step by step, everywhere at the same pace. A cut
to black takes one step; a text that is written on black is there in one place before it is in the next; after a flash
the old picture is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from curation.evidence import GRID
from curation.likeness import Look, same_structure, spread

LONGEST = 60  # looks on one side
_LONGEST_S = 2.2
LOW = 0.27  # a picture of one colour has less than this share of the contrast around it
_LEAST_CONTRAST = 6.0
_SHORTEST = 3  # steps; what is shorter is a cut
_STEEPEST = 0.6  # share of the way that one step may take
_FULL = 0.95  # share of its contrast from which a picture counts as unmixed
_RISE = 0.012  # of contrast, from one look to the next, while the fade goes on
_SLOWEST = 0.2  # of its pace so far
_SAME, _ROUGHLY_SAME, _SHADED_SAME = 0.5, 0.35, 0.28  # correlation of structure
_FADED, _MOSTLY = 8, 0.3  # grey levels; share of the picture
_LIT = 40  # grey levels; no fade is that quick
_NOTHING = 0.25  # contrast
_HALFWAY = 0.4  # share of contrast
_EVEN = 0.25  # deviation among cells of the share of its way that each has gone; text being written has 0.3 and more
_SHADE = 0.13  # share of contrast from which a dark picture may be one in the shade


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
    """The fade around the blank looks ``first`` to ``last``, if it is one.

    Where a cut leads to black or from it, black belongs to no fade until the picture comes up, or once it is gone.
    """
    lowest = first + np.flatnonzero(contrast[first : last + 1] <= contrast[first : last + 1].min() + _NOTHING)
    gone, coming = int(lowest[0]), int(lowest[-1])
    out, back = _climb(looks, contrast, gone, -1), _climb(looks, contrast, coming, 1)
    if not any(_only_fades(looks, contrast, *side) for side in ((gone, out), (coming, back))):
        return None
    before, after = first - 1 if out is None else out, last + 1 if back is None else back
    if before >= 0 and after < len(looks) and same_structure(looks[before], looks[after]) > _SAME:
        return None  # a flash, or the light went out
    for full, lit in ((before, gone), (after, coming)):
        dim = 0 <= full < len(looks) and _rest(looks[full], looks[lit]) > _SHADE * contrast[full]
        if dim and same_structure(looks[full], looks[lit]) > _SHADED_SAME:
            return None  # a shadow
    return Fade(coming if out is None else out, gone if back is None else back)


def _rest(full: Look, blank: Look) -> float:
    """Contrast of a nearly blank picture without what does not fade: bars, and a logo with its blurred edges."""
    faded, whole = blank.luma[np.abs(full.luma - blank.luma) > _FADED], spread(blank.luma)
    if faded.size < _MOSTLY * blank.luma.size:
        return whole
    low, high = np.percentile(faded, (10, 90))
    return min(whole, float(high - low) / 2.56)  # standard deviations between these


def _only_fades(looks: Sequence[Look], contrast: np.ndarray, blank: int, full: int | None) -> bool:
    """Whether halfway to the complete picture one sees the same as there, if fainter, and everywhere alike."""
    if full is None:
        return False
    way = np.arange(blank, full, 1 if full > blank else -1)
    halfway = int(way[np.argmax(contrast[way] >= contrast[blank] + _HALFWAY * (contrast[full] - contrast[blank]))])
    if same_structure(looks[halfway], looks[full]) < _ROUGHLY_SAME:
        return False
    return _unevenness(looks[blank], looks[halfway], looks[full]) <= _EVEN


def _unevenness(blank: Look, halfway: Look, full: Look) -> float:
    """How far apart the cells of the picture are on their way; those that change most count most."""
    begin, between, end = (cv2.resize(look.luma, GRID, interpolation=cv2.INTER_AREA) for look in (blank, halfway, full))
    way = end - begin
    weight = way * way + 1e-6
    gone = np.clip((between - begin) * way / (way * way + 30.0), 0, 1)
    return float(np.sqrt(np.average((gone - np.average(gone, weights=weight)) ** 2, weights=weight)))


def _climb(looks: Sequence[Look], contrast: np.ndarray, i: int, step: int) -> int | None:
    """Go from a blank look to where the picture is complete; None if that is no fade."""
    best = j = i
    missed = 0
    while 0 <= j + step < len(contrast) and abs(j - i) < LONGEST and missed < 2:
        j += step
        if abs(looks[j].t_s - looks[i].t_s) > _LONGEST_S:
            break
        pace = (contrast[best] - contrast[i]) / max(abs(best - i), 1)  # once the fade is over, only motion adds to it
        if contrast[j] > contrast[best] + max(_NOTHING, _RISE * contrast[best], _SLOWEST * pace * abs(j - best)):
            best, missed = j, 0
        else:
            missed += 1
    positions = np.arange(i, best + step, step)
    way = contrast[positions]
    if len(way) <= _SHORTEST or np.diff(way).max() > _STEEPEST * (way[-1] - way[0]):
        return None
    light = np.array([looks[k].grey.mean() for k in positions.tolist()])
    if np.abs(np.diff(light)).max() > max(_LIT, _STEEPEST * abs(light[-1] - light[0])):
        return None  # a cut to a picture whose contrast rises later
    full = int(np.argmax(way >= way[0] + _FULL * (way[-1] - way[0])))
    return None if full < _SHORTEST else i + step * full
