"""Samples that are not trained on, to judge by."""

from __future__ import annotations

import dataclasses
import hashlib

import pyarrow as pa

from curation.errors import UsageError
from shards.read import Catalogue, read_catalogue
from shards.scan import ROW
from training.data.settings import DataSettings

_VIDEO = "video_id"


def open_parts(settings: DataSettings, share: float) -> tuple[Catalogue, Catalogue]:
    """The samples of the settings' shards to train on, and those to judge by.

    All clips of one video go the same way, because they look alike; which way depends on its name alone, so that more
    footage moves nothing (only of very few videos the one whose turn comes first is held out, where none is due).
    Samples whose rows name no video go by their keys.

    Raises:
        UsageError: there are no samples, or none would be left to train on.
    """
    whole = read_catalogue(settings.shards, cache=settings.cache, columns=settings.keep, optional=[_VIDEO])
    keys, column = whole.table["key"].to_pylist(), ROW + _VIDEO
    videos = whole.table[column].to_pylist() if column in whole.table.column_names else [None] * len(keys)
    drawn = [_drawn(video or key) for video, key in zip(videos, keys, strict=True)]
    most = max(share, min(drawn) * (1 + 1e-9)) if share else 0.0
    held = [place < most for place in drawn]
    train, judge = (
        dataclasses.replace(whole, table=whole.table.filter(pa.array([each is side for each in held], pa.bool_())))
        for side in (False, True)
    )
    judge = dataclasses.replace(judge, faults=())  # counted once: they would be too many for so few samples
    if not len(train):
        raise UsageError(
            f"data.held_out {share:g} leaves none of {len(whole)} samples to train on (whole videos are held out): "
            f"choose a smaller share, 0, or give more videos"
        )
    return train, judge


def _drawn(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2**56
