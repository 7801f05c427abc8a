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
    footage moves nothing. Samples whose rows name no video go by their keys.

    Raises:
        UsageError: there are no samples, or all or none would be held out.
    """
    whole = read_catalogue(settings.shards, cache=settings.cache, columns=settings.keep, optional=[_VIDEO])
    keys, column = whole.table["key"].to_pylist(), ROW + _VIDEO
    videos = whole.table[column].to_pylist() if column in whole.table.column_names else [None] * len(keys)
    held = [_drawn(video or key) < share for video, key in zip(videos, keys, strict=True)]
    train, judge = (
        dataclasses.replace(whole, table=whole.table.filter(pa.array([each is side for each in held], pa.bool_())))
        for side in (False, True)
    )
    if not len(train) or (share and not len(judge)):
        raise UsageError(
            f"data.held_out {share:g} holds out {len(judge)} of {len(whole)} samples (whole videos): "
            f"choose another share, or give more videos"
        )
    return train, judge


def _drawn(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2**56
