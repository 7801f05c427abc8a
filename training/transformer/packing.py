"""Which samples are computed together: packs up to a number of tokens, or batches of one shape.

Both are functions of the samples, the seed and the epoch alone, and list each sample of an epoch once.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from curation.errors import UsageError

Groups = list[list[int]]
"""Numbers of the samples that are computed together, group by group."""


def packs(lengths: np.ndarray, *, tokens: int, seed: int, epoch: int, look_ahead: int = 256) -> Groups:
    """Fill packs: each begins with the sample that has waited longest, and takes the longest that still fits.

    Looks only ``look_ahead`` samples ahead in the order of the epoch, so that short samples are not used up early, and
    a stream could be packed the same way. Best fit decreasing within that window.

    Args:
        lengths: tokens of each sample, int (N,).
        tokens: that a pack may have.

    Raises:
        UsageError: a sample is longer than a pack.
    """
    if len(lengths) and (longest := int(lengths.max())) > tokens:
        raise UsageError(f"packing.tokens {tokens}: the longest sample alone has {longest} tokens with its text")
    order = shuffled(len(lengths), seed=seed, epoch=epoch).tolist()
    size = lengths.tolist()
    waiting: list[tuple[int, int]] = []  # (length, -place in the order), ascending: the last that fits is the best
    entered = 0
    left = set[int]()  # places in the order that wait
    oldest = 0
    groups: Groups = []
    while entered < len(order) or left:
        room, group = tokens, list[int]()
        while True:
            while entered < len(order) and len(left) < look_ahead:
                bisect.insort(waiting, (size[order[entered]], -entered))
                left.add(entered)
                entered += 1
            while oldest < entered and oldest not in left:
                oldest += 1
            if not left:
                break
            if group:
                at = bisect.bisect_right(waiting, (room, 0)) - 1
            else:
                at = bisect.bisect_left(waiting, (size[order[oldest]], -oldest))
            if at < 0:
                break
            length, place = waiting.pop(at)
            left.remove(-place)
            group.append(order[-place])
            room -= length
        groups.append(group)
    return groups


def batches(
    kinds: Sequence[int], sizes: Sequence[int], *, seed: int, epoch: int, following: int = 1, fill: bool = False
) -> Groups:
    """Batches of one kind of samples each, in random order.

    Args:
        kinds: of each sample: its shape, as an index into ``sizes``.
        sizes: samples in a batch of each kind.
        following: so many batches of one kind follow each other, so that ranks compute equal ones at a time.
        fill: short batches are filled with samples of the epoch's beginning; otherwise they stay short.
    """
    order = shuffled(len(kinds), seed=seed, epoch=epoch)
    kind = np.asarray(kinds, np.int64)[order]
    runs: list[Groups] = []
    for number, size in enumerate(sizes):
        own = order[kind == number].tolist()
        cut = [own[at : at + size] for at in range(0, len(own), size)]
        if fill and cut:
            missing = size - len(cut[-1])
            cut[-1] = cut[-1] + [own[i % len(own)] for i in range(missing)]
        runs += [cut[at : at + following] for at in range(0, len(cut), following)]
    drawn = [runs[int(at)] for at in shuffled(len(runs), seed=seed, epoch=epoch)]
    # A run that is short would move all behind it out of step with the ranks.
    return [group for run in sorted(drawn, key=lambda run: len(run) < following) for group in run]


def fill(groups: Groups, lengths: np.ndarray, *, tokens: int) -> float:
    """How full packs are: the share of their tokens that samples have."""
    return float(sum(int(lengths[group].sum()) for group in groups)) / (tokens * max(1, len(groups)))


def shuffled(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, int64 (count,): of raw numbers of the generator, which no version of numpy changes."""
    bits = np.random.PCG64([seed & (2**63 - 1), epoch])
    return np.argsort(bits.random_raw(count), kind="stable")
