"""The batches of an epoch, in one order for the whole world: a function of samples, settings, seed and epoch alone.

Rank r of R reads batches r, r + R, and so on. So a run that goes on with another number of ranks, or of workers, reads
the same batches, each once.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from shards.read import Catalogue
from training.data.assign import Assignment, assign
from training.data.chance import draws
from training.data.settings import DataSettings


class Planned(NamedTuple):
    """One batch of the plan."""

    bucket: int
    is_image: bool  # single frames of the bucket's clips
    samples: np.ndarray  # int64, rows of the catalogue
    following: np.ndarray  # int64, samples of the bucket that stand in where some fail, in their order
    repeats: int  # how many of the samples, at the end, are there only to fill the batch


@dataclasses.dataclass(frozen=True)
class _Lane:
    """The samples of one bucket in the order of the epoch, cut into batches."""

    bucket: int
    is_image: bool
    samples: np.ndarray  # int64
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)


class EpochPlan:
    """All batches of one epoch, in their order. Costs some twenty bytes a sample.

    Args:
        catalogue: the samples.
        settings: how they are batched.
        epoch: from 0.
        like: the plan of another epoch of the same, whose assignment may do for this one too.
    """

    def __init__(
        self, catalogue: Catalogue, settings: DataSettings, epoch: int, *, like: EpochPlan | None = None
    ) -> None:
        same = like is not None and all(bucket.keep == 1 for bucket in settings.buckets)
        self.assignment: Assignment = like.assignment if like and same else assign(catalogue, settings, epoch)
        self._fill = settings.short == "fill"
        self._lanes: list[_Lane] = []
        order = _order(catalogue, settings, epoch)
        bucket = self.assignment.bucket[order]
        places = []  # of each lane's batches among all
        for i, one in enumerate(settings.buckets):
            at = np.flatnonzero(bucket == i)  # positions in the order
            if not len(at):
                continue
            clips = _Lane(i, False, order[at], one.batch_size)
            places.append(_completed(clips, at, settings.group, len(order) + i))
            self._lanes.append(clips)
            if count := round(len(clips) * settings.images / (1 - settings.images)):
                # Every so-manieth clip gives a frame, so that images are read where the clips are.
                size = settings.image_batch_size or one.batch_size
                offset = draws(settings.seed, epoch, "images", str(one))[0]
                which = ((np.arange(count * size) + offset) * len(at) / (count * size)).astype(np.int64) % len(at)
                images = _Lane(i, True, order[at[which]], size)
                places.append(_between(images, places[-1], settings.group))
                self._lanes.append(images)
        by_place = np.argsort(np.concatenate([np.zeros(0), *places]), kind="stable")
        lengths = [len(lane) for lane in self._lanes]
        self._lane_of = np.repeat(np.arange(len(lengths)), lengths)[by_place]
        self._number = np.concatenate([np.zeros(0, np.int64), *map(np.arange, lengths)])[by_place]

    def __len__(self) -> int:
        return len(self._lane_of)

    def __getitem__(self, index: int) -> Planned:
        lane, number = self._lanes[self._lane_of[index]], int(self._number[index])
        start, end = number * lane.batch_size, min((number + 1) * lane.batch_size, len(lane.samples))
        samples = lane.samples[start:end]
        # Four batches of substitutes: where all of them are bad too, something else is wrong.
        following = np.take(lane.samples, np.arange(end, end + max(4 * lane.batch_size, 16)), mode="wrap")
        missing = lane.batch_size - len(samples) if self._fill else 0
        if missing:
            samples = np.concatenate([samples, following[:missing]])
        return Planned(lane.bucket, lane.is_image, samples, following[missing:], missing)

    def lane(self, index: int) -> int:
        """Which batches this one is of: those of one bucket, clips or images, have the same number."""
        return int(self._lane_of[index])

    def instead(self, index: int, lanes: set[int]) -> int | None:
        """The next batch, from this one on and round, that is of none of these lanes."""
        others = np.flatnonzero(~np.isin(np.roll(self._lane_of, -index), [*lanes]))
        return (index + int(others[0])) % len(self) if len(others) else None

    def counts(self) -> dict[tuple[int, bool], tuple[int, int]]:
        """(bucket, images) -> (samples, batches)."""
        return {(lane.bucket, lane.is_image): (len(lane.samples), len(lane)) for lane in self._lanes}


def _completed(lane: _Lane, at: np.ndarray, group: int, end: int) -> np.ndarray:
    """Where batches of clips come: when the last sample of their group has come; a remainder at ``end``. float N."""
    last = (np.arange(len(lane)) // group + 1) * group * lane.batch_size - 1
    return np.where(last < len(at), at[np.minimum(last, len(at) - 1)], end).astype(float)


def _between(images: _Lane, clips: np.ndarray, group: int) -> np.ndarray:
    """Where batches of images come: evenly among those of clips, in groups too. float N."""
    first = np.arange(len(images)) // group * group
    return clips[((first + 0.5) * len(clips) / len(images)).astype(np.int64)] + 0.25


def _order(catalogue: Catalogue, settings: DataSettings, epoch: int) -> np.ndarray:
    """Rows of the catalogue in the order of an epoch: shards at random, samples at random within a window of shards."""
    rows = np.arange(len(catalogue), dtype=np.int64)
    if not settings.shuffle:
        return rows
    bits = np.random.PCG64([settings.seed & (2**63 - 1), epoch])  # its raw numbers are the same in every numpy
    place = np.argsort(np.argsort(bits.random_raw(len(catalogue.shards)), kind="stable"), kind="stable")
    window = place[catalogue.table["shard"].to_numpy()] // settings.window
    # A permutation first, and then a stable sort by window: each window is shuffled by itself.
    shuffled = rows[np.argsort(bits.random_raw(len(rows)), kind="stable")]
    return np.asarray(shuffled[np.argsort(window[shuffled], kind="stable")])
