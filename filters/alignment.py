"""How alike two clips are, wherever in time one lies against the other.

Suffixes in this file: T steps in time, K coefficients, O offsets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from filters.video_hash import MIRROR, Unpacked

_LEAST_SHARED = 0.5  # of the shorter clip: offsets are tried that have so much in common
# The picture itself counts so much against its change. Coding noise changes pictures by about this much: where a clip
# changes less, the picture decides.
_PICTURE = 2e-5


class Likeness(NamedTuple):
    """How alike two clips are at their best offset.

    Attributes:
        value: correlation of what they show, -1..1.
        shared_steps: how long they have in common.
        offset: step i of the first is step i + offset of the second.
    """

    value: float
    shared_steps: int
    offset: int


def likeness(one: Unpacked, other: Unpacked, *, mirrored: bool = False, picture: float = _PICTURE) -> Likeness:
    """Compare two clips at all offsets, whole steps and half ones; ``mirrored``: against the other's mirror picture."""
    if mirrored:
        other = Unpacked(other.mean * MIRROR, other.change * MIRROR)
    whole = _best(one, other, picture)
    between = Unpacked(other.mean, (other.change[1:] + other.change[:-1]) / 2)
    return max(whole, _best(one, between, picture))


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The same for pairs of clips that are aligned already, steps N T K each: N."""
    mean_a, mean_b = one.mean(axis=1), other.mean(axis=1)

    def common(a: np.ndarray, mean_of_a: np.ndarray, b: np.ndarray, mean_of_b: np.ndarray) -> np.ndarray:
        product, means = np.einsum("ntk,ntk->n", a, b) / a.shape[1], np.einsum("nk,nk->n", mean_of_a, mean_of_b)
        return product - (1 - _PICTURE) * means

    power = common(one, mean_a, one, mean_a) * common(other, mean_b, other, mean_b)
    return common(one, mean_a, other, mean_b) / np.sqrt(np.maximum(power, 1e-12))


def _best(one: Unpacked, other: Unpacked, picture: float) -> Likeness:
    a, b = one.change, other.change
    offsets = np.arange(1 - len(a), len(b))  # step i of one is step i + offset of the other
    first_a, first_b = np.maximum(-offsets, 0), np.maximum(offsets, 0)
    shared = np.minimum(len(a) - first_a, len(b) - first_b)
    tried = shared >= max(2, _LEAST_SHARED * min(len(a), len(b)))
    first_a, first_b, shared = first_a[tried], first_b[tried], shared[tried]
    count = shared[:, None].astype(np.float32)
    mean_a, mean_b = _spans(a, first_a, shared) / count, _spans(b, first_b, shared) / count  # O K
    power_a = _spans(np.square(a).sum(axis=1), first_a, shared) / shared - np.square(mean_a).sum(axis=1)
    power_b = _spans(np.square(b).sum(axis=1), first_b, shared) / shared - np.square(mean_b).sum(axis=1)
    common = _diagonals(a @ b.T)[tried] / shared - (mean_a * mean_b).sum(axis=1)
    mean_a, mean_b = mean_a + one.mean, mean_b + other.mean
    power_a = np.maximum(power_a, 0) + picture * np.square(mean_a).sum(axis=1)
    power_b = np.maximum(power_b, 0) + picture * np.square(mean_b).sum(axis=1)
    common += picture * (mean_a * mean_b).sum(axis=1)
    values = common / np.sqrt(power_a * power_b)
    covered = np.minimum(1.0, (shared + 1) / min(len(a), len(b)))
    best = int((values * covered).argmax())
    return Likeness(float(values[best]), int(shared[best]), int((first_b - first_a)[best]))


def _spans(values: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Sums over spans in time."""
    total = np.concatenate([np.zeros_like(values[:1], np.float64), values.cumsum(axis=0, dtype=np.float64)])
    return np.asarray(total[first + count] - total[first])


def _diagonals(products: np.ndarray) -> np.ndarray:
    """Sums along the diagonals of a matrix T T, from the lowest left to the highest right."""
    rows, columns = products.shape
    skewed = np.zeros((rows, columns + rows), products.dtype)
    skewed[:, :columns] = products[::-1]
    return np.asarray(skewed.ravel()[: rows * (rows + columns - 1)].reshape(rows, -1).sum(axis=0))
