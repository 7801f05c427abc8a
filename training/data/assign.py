"""Which bucket a clip goes to, and why some go to none."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa

from shards.read import Catalogue
from shards.scan import ROW
from training.data.settings import Bucket, DataSettings

# A clip is fast enough for a bucket's fps if it is no slower than this share of it: 23.976 for 24, but not 24 for 25,
# where a frame would have to be shown twice.
_AS_FAST = 0.995
_SAME_CLASS = 0.8  # buckets whose areas differ less are one resolution in several aspects
# too_short: or, for buckets with fps, too slow. fits_no_bucket: long enough for one, and large enough for another.
SHAPE_REASONS = ("too_short", "too_small", "fits_no_bucket", "not_kept")
_SLACK = 1e-6  # of a frame: lengths are quotients


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Where each sample of the catalogue goes.

    Attributes:
        bucket: int16 N, index of the bucket in the settings' list; -1: to none.
        why: int8 N, index in ``reasons`` of why a sample goes to none; -1: it goes to one.
        reasons: in words to count by; rules as ``keep: NAME``.
    """

    bucket: np.ndarray
    why: np.ndarray
    reasons: list[str]

    def dropped(self) -> dict[str, int]:
        """Reason -> samples that go to no bucket because of it."""
        counts = {reason: int((self.why == i).sum()) for i, reason in enumerate(self.reasons)}
        return {reason: count for reason, count in counts.items() if count}


def search_order(buckets: list[Bucket]) -> list[list[int]]:
    """Buckets from the largest and longest on; those that differ in aspect alone stand together."""
    left = sorted(range(len(buckets)), key=lambda i: (-_area(buckets[i]), i))
    order: list[list[int]] = []
    while left:
        largest = _area(buckets[left[0]])
        same = [i for i in left if _area(buckets[i]) >= _SAME_CLASS * largest]
        left = [i for i in left if i not in same]
        for frames, fps in sorted({(buckets[i].frames, _length(buckets[i])) for i in same}, reverse=True):
            order.append([i for i in same if (buckets[i].frames, _length(buckets[i])) == (frames, fps)])
    return order


def fits_length(bucket: Bucket, num_frames: np.ndarray, fps: np.ndarray) -> np.ndarray:
    """Whether clips have enough frames: as many as the bucket, or more. bool N."""
    if bucket.fps is None:
        return num_frames >= bucket.frames
    at_rate = np.floor(num_frames / fps * bucket.fps + 0.5)  # as the writer of shards counts
    return (fps >= _AS_FAST * bucket.fps) & (at_rate + _SLACK >= bucket.frames)


def fits_size(bucket: Bucket, height: np.ndarray, width: np.ndarray, min_pixels: float) -> np.ndarray:
    """Whether what is cut from clips has ``min_pixels`` of the bucket's pixels before it is scaled. bool N."""
    scale = np.maximum(bucket.height / height, bucket.width / width)
    return 1 / scale**2 >= min_pixels - _SLACK


def crop_loss(bucket: Bucket, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Share of a clip's picture that the crop leaves out. float N."""
    scale = np.maximum(bucket.height / height, bucket.width / width)
    return 1 - bucket.height * bucket.width / (height * width * scale**2)


def assign(catalogue: Catalogue, settings: DataSettings, epoch: int) -> Assignment:
    """Where each sample goes in an epoch; only ``keep`` of buckets below 1 makes epochs differ."""
    table = catalogue.table
    num_frames, fps = (table[name].to_numpy().astype(float) for name in ("num_frames", "fps"))
    height, width = (table[name].to_numpy().astype(float) for name in ("height", "width"))
    bucket = np.full(len(catalogue), -1, np.int16)
    why, reasons = _ruled_out(catalogue, settings)
    open_ = why < 0
    long, large = np.zeros(len(catalogue), bool), np.zeros(len(catalogue), bool)
    fitted = np.zeros(len(catalogue), bool)
    for together in search_order(settings.buckets):
        best = np.full(len(catalogue), np.inf)
        for i in together:
            one = settings.buckets[i]
            is_long = fits_length(one, num_frames, fps)
            is_large = fits_size(one, height, width, settings.min_pixels)
            long, large = long | is_long, large | is_large
            fitted |= is_long & is_large
            aspect = np.abs(np.log(width / height * one.height / one.width))
            takes = open_ & is_long & is_large & (aspect < best)
            takes &= _kept(catalogue, settings, epoch, i, takes)
            bucket[takes], best[takes] = i, aspect[takes]
        open_ &= bucket < 0
    shapes = (open_ & ~long, open_ & long & ~large, open_ & long & large & ~fitted, open_ & fitted)
    for name, which in zip(SHAPE_REASONS, shapes, strict=True):
        why[which] = len(reasons)
        reasons.append(name)
    return Assignment(bucket, why, reasons)


def _ruled_out(catalogue: Catalogue, settings: DataSettings) -> tuple[np.ndarray, list[str]]:
    """Why samples are left out whatever their shape, int8 N, -1 where they are not, and the words for it."""
    table, why = catalogue.table, np.full(len(catalogue), -1, np.int8)
    checks: list[tuple[str, np.ndarray]] = []
    if settings.captions == "required":
        checks.append(("no_caption", table["caption_bytes"].to_numpy() > 0))
    for column, rule in settings.keep.items():
        values: pa.ChunkedArray = table[ROW + column]
        checks.append((f"keep: {column}", np.array([rule.keeps(value) for value in values.to_pylist()], bool)))
    for i, (_, keeps) in enumerate(checks):
        why[(why < 0) & ~keeps] = i
    return why, [name for name, _ in checks]


def _kept(catalogue: Catalogue, settings: DataSettings, epoch: int, index: int, asked: np.ndarray) -> np.ndarray:
    """Which of the samples that are asked for a bucket takes: a share, drawn by seed, epoch and key. bool N."""
    share = settings.buckets[index].keep
    kept = np.ones(len(catalogue), bool)
    if share < 1:
        keys = catalogue.table["key"]
        for i in np.flatnonzero(asked):
            drawn = draws(settings.seed, epoch, f"keep {settings.buckets[index]}", keys[int(i)].as_py())
            kept[i] = drawn[0] < share
    return kept


def draws(seed: int, epoch: int, purpose: str, key: str) -> np.ndarray:
    """Eight numbers in [0, 1) that depend on nothing else, on any machine."""
    text = f"{seed}/{epoch}/{purpose}/{key}"
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=64).digest(), "<u8")
    return (words >> np.uint64(11)) * 2.0**-53


def _area(bucket: Bucket) -> int:
    return bucket.height * bucket.width


def _length(bucket: Bucket) -> float:
    """Seconds at its own rate; buckets without one stand last among those of as many frames."""
    return bucket.frames / bucket.fps if bucket.fps else 0.0
