"""What a run will read, said before it starts: per bucket its samples, batches, crops, and what is dropped and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from curation.errors import UsageError
from shards.bytes import file_name
from shards.read import Catalogue
from training.data.assign import SHAPE_REASONS, crop_loss, fits_length, fits_size
from training.data.faults import Faults
from training.data.loader import open_catalogue
from training.data.plan import EpochPlan
from training.data.settings import Bucket, DataSettings

_EXAMPLES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketReport:
    """What one bucket gives in an epoch."""

    bucket: str
    kind: str  # clips | images
    samples: int
    batches: int
    batch_size: int
    last_batch: int  # samples of the last one
    crop_loss: float  # mean share of the pictures that is cut off
    num_enlarged: int  # samples that are scaled up, within ``min_pixels``


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preflight:
    """The report. Counts are of epoch 0; other epochs differ only where a bucket keeps a share."""

    num_shards: int
    num_samples: int  # that can be read
    buckets: list[BucketReport]
    batches: int  # of the whole world
    steps: int  # of every rank
    dropped: dict[str, int]  # reason -> readable samples that go to no bucket
    dropped_names: dict[str, list[str]]
    bad: dict[str, int]  # reason -> samples that cannot be read, and things that are only noted
    bad_names: dict[str, list[str]]
    without_caption: int  # among the samples that are read

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dataclasses.asdict(self)

    def to_table(self) -> list[dict[str, Any]]:
        """One row per bucket and kind, for a table on a terminal."""
        return [dataclasses.asdict(bucket) for bucket in self.buckets]


def preflight(settings: DataSettings, *, world: int = 1, catalogue: Catalogue | None = None) -> Preflight:
    """Report what an epoch reads, without decoding anything.

    Args:
        settings: of the data.
        world: number of ranks, for ``steps``.
        catalogue: of the shards, where it has been read already.

    Raises:
        UsageError: the settings cannot be met: no shards, or a bucket that no sample goes to.
        BadDataError: more samples are bad than the settings bear.
    """
    settings.check()
    catalogue = catalogue if catalogue is not None else open_catalogue(settings)
    faults = Faults(settings.max_bad, settings.bad_at_least)
    faults.note(catalogue)
    plan = EpochPlan(catalogue, settings, 0)
    counts = plan.counts()
    for i in range(len(settings.buckets)):
        if (i, False) not in counts:
            raise UsageError(_why_empty(i, settings, catalogue, plan))
    read = plan.assignment.bucket >= 0
    summary = faults.summary()
    return Preflight(
        num_shards=len(catalogue.shards),
        num_samples=len(catalogue),
        buckets=[_bucket(key, counts[key], settings, catalogue, plan) for key in sorted(counts)],
        batches=len(plan),
        steps=-(-len(plan) // world),
        dropped=plan.assignment.dropped(),
        dropped_names={
            reason: [_name(catalogue, int(n)) for n in np.flatnonzero(plan.assignment.why == i)[:_EXAMPLES]]
            for i, reason in enumerate(plan.assignment.reasons)
            if (plan.assignment.why == i).any()
        },
        bad=summary["bad"],
        bad_names=summary["named"],
        without_caption=int((read & (catalogue.table["caption_bytes"].to_numpy() == 0)).sum()),
    )


def _bucket(
    key: tuple[int, bool], count: tuple[int, int], settings: DataSettings, catalogue: Catalogue, plan: EpochPlan
) -> BucketReport:
    (index, is_image), (samples, batches) = key, count
    bucket = settings.buckets[index]
    size = (settings.image_batch_size or bucket.batch_size) if is_image else bucket.batch_size
    which = plan.assignment.bucket == index
    height, width = (catalogue.table[name].to_numpy()[which] for name in ("height", "width"))
    return BucketReport(
        bucket=str(bucket),
        kind="images" if is_image else "clips",
        samples=samples,
        batches=batches,
        batch_size=size,
        last_batch=size if settings.short == "fill" else samples - (batches - 1) * size,
        crop_loss=float(crop_loss(bucket, height, width).mean()),
        num_enlarged=int((np.maximum(bucket.height / height, bucket.width / width) > 1).sum()),
    )


def _why_empty(index: int, settings: DataSettings, catalogue: Catalogue, plan: EpochPlan) -> str:
    """Which bucket is empty, and what comes nearest to it."""
    bucket, table = settings.buckets[index], catalogue.table
    num_frames, fps = (table[name].to_numpy().astype(float) for name in ("num_frames", "fps"))
    height, width = (table[name].to_numpy().astype(float) for name in ("height", "width"))
    shapes = [i for i, reason in enumerate(plan.assignment.reasons) if reason in SHAPE_REASONS]
    allowed = (plan.assignment.bucket >= 0) | np.isin(plan.assignment.why, shapes)
    text = f"bucket {bucket} is empty: no sample goes there. "
    if not allowed.any():
        return f"{text}Rules and captions leave out all {len(catalogue)}: {plan.assignment.dropped()}"
    long = allowed & fits_length(bucket, num_frames, fps)
    large = allowed & fits_size(bucket, height, width, settings.min_pixels)
    if (both := int((long & large).sum())) > 0:
        return (
            f"{text}{both} samples fit it, and all go to other buckets, or its keep of {bucket.keep:g} leaves them out"
        )
    if large.any():
        return f"{text}Of {int(large.sum())} samples that are large enough, {_longest(bucket, num_frames, fps, large)}"
    where = long if long.any() else allowed
    best = int(np.argmax(np.where(where, np.minimum(height / bucket.height, width / bucket.width), -1.0)))
    kind = "long enough" if long.any() else "there"
    most = f"the largest is {int(width[best])}x{int(height[best])} (width x height)"
    also = "" if long.any() else f", and {_longest(bucket, num_frames, fps, allowed)}"
    return f"{text}Of {int(where.sum())} samples that are {kind}, {most}{also}"


def _longest(bucket: Bucket, num_frames: np.ndarray, fps: np.ndarray, among: np.ndarray) -> str:
    if bucket.fps is None:
        return f"the longest has {int(num_frames[among].max())} frames"
    fast = among & fits_length(dataclasses.replace(bucket, frames=1), num_frames, fps)
    if not fast.any():
        return f"the fastest has {fps[among].max():.3f} frames a second"
    at_rate = np.floor(num_frames[fast] / fps[fast] * bucket.fps + 0.5)
    return f"the longest has {int(at_rate.max())} frames at {bucket.fps:g} a second"


def _name(catalogue: Catalogue, row: int) -> str:
    shard = catalogue.shards[catalogue.table["shard"][row].as_py()]
    return f"{file_name(shard.url)}:{catalogue.table['key'][row].as_py()}"
