"""What is in the samples of shards, by content: a digest of each video's bytes, its caption, its scores.

Names of samples and places of shards say nothing of what is in them. To know it a video has to be read once; that is
noted for each shard, so that only a changed shard is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captioning.tags import scores_to_say, with_tags
from curation.errors import UsageError
from curation.files import aside
from shards.bytes import Bytes
from shards.read import Catalogue, Shard

T = TypeVar("T")

_VERSION = 1
_SCHEMA = pa.schema([("place", pa.int64()), ("digest", pa.string()), ("caption", pa.string())])


class Content(NamedTuple):
    """One sample."""

    digest: str | None  # of the video; None where it cannot be read
    caption: str


def note_contents(catalogue: Catalogue, *, folder: Path, rank: int, size: int) -> None:
    """Note in ``folder`` what is in this rank's share of the shards: ``contents`` is then quick on every rank."""
    reader = Bytes()
    try:
        for number, rows in _by_shard(catalogue):
            if number % size == rank:
                _contents(reader, catalogue, number, rows, folder)
    finally:
        reader.close()


def contents(catalogue: Catalogue, *, folder: Path) -> list[Content]:
    """What is in each sample of the catalogue, in its order.

    Args:
        folder: where it is noted. Processes may do it at the same time, but then all of them read.
    """
    found: dict[int, Content] = {}
    reader = Bytes()
    try:
        for number, rows in _by_shard(catalogue):
            known = _contents(reader, catalogue, number, rows, folder)
            found.update({at: known[row["video_offset"]] for at, row in rows})
    finally:
        reader.close()
    return [found[at] for at in range(len(catalogue))]


def _contents(
    reader: Bytes, catalogue: Catalogue, number: int, rows: list[tuple[int, dict[str, int]]], folder: Path
) -> dict[int, Content]:
    """What is in a shard, by the place of the video: as noted, or read and noted."""
    shard = catalogue.shards[number]
    note = folder / f"{_version(reader, shard)}.parquet"
    known = _noted(note)
    if any(row["video_offset"] not in known for _, row in rows):
        known |= {row["video_offset"]: _read(reader, shard.url, row) for _, row in rows}
        _note(note, known)
    return known


def captions(catalogue: Catalogue) -> list[str]:
    """The caption of each sample, without reading videos."""
    return _of_each(catalogue, _caption)


def tagged(captions: Sequence[str], catalogue: Catalogue, tag_dropout: float | None) -> list[str]:
    """The captions of a catalogue's samples with their scores behind them; as they are where ``tag_dropout`` is None.

    Which scores are left out is decided by caption and scores, so that a text is encoded once and for all epochs.
    """
    if tag_dropout is None:
        return list(captions)
    texts = []
    for caption, scores in zip(captions, _of_each(catalogue, _scores), strict=True):
        digest = hashlib.blake2b(json.dumps([caption, scores]).encode(), digest_size=8).digest()
        chance = np.random.default_rng(int.from_bytes(digest, "big"))
        texts.append(with_tags(caption, scores, chance, dropout=tag_dropout))
    return texts


def check_tags(catalogue: Catalogue, tag_dropout: float | None) -> None:
    """Raises UsageError if scores are to be said that no sample has."""
    if tag_dropout is not None and not any(_of_each(catalogue, _scores)):
        raise UsageError(
            f"text.tag_dropout {tag_dropout:g}: no clip has aesthetic_score, motion_score or camera_motion in its row; "
            "have the pipeline of the shards measure one (stages motion, aesthetic), or leave it out"
        )


def _of_each(catalogue: Catalogue, read: Callable[[Bytes, str, dict[str, int]], T]) -> list[T]:
    """What is read of each sample, by the address of its shard and its row."""
    reader = Bytes()
    try:
        found = {
            at: read(reader, catalogue.shards[number].url, row)
            for number, rows in _by_shard(catalogue)
            for at, row in rows
        }
    finally:
        reader.close()
    return [found[at] for at in range(len(catalogue))]


def _by_shard(catalogue: Catalogue) -> Iterator[tuple[int, list[tuple[int, dict[str, int]]]]]:
    """Each shard's number, and its samples: place in the catalogue, and row."""
    names = ("shard", "video_offset", "video_bytes", "text_offset", "text_bytes", "json_offset", "json_bytes")
    by_shard: dict[int, list[tuple[int, dict[str, int]]]] = {}
    for at, row in enumerate(catalogue.table.select(names).to_pylist()):
        by_shard.setdefault(row["shard"], []).append((at, row))
    yield from by_shard.items()


def _read(reader: Bytes, url: str, row: dict[str, int]) -> Content:
    try:
        data = reader.read(url, row["video_offset"], row["video_bytes"])
    except OSError:
        data = b""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest() if len(data) == row["video_bytes"] else None
    return Content(digest, _caption(reader, url, row))


def _caption(reader: Bytes, url: str, row: dict[str, int]) -> str:
    """The text beside the video, or else the caption in its row."""
    if row["text_offset"] is None:
        return str(_row(reader, url, row).get("caption") or "")
    try:
        return reader.read(url, row["text_offset"], row["text_bytes"]).decode("utf-8", errors="replace")
    except OSError:
        return ""  # such a sample cannot be read either, which is said where that is tried


def _scores(reader: Bytes, url: str, row: dict[str, int]) -> dict[str, Any]:
    return scores_to_say(_row(reader, url, row))


def _row(reader: Bytes, url: str, row: dict[str, int]) -> dict[str, Any]:
    """The row of the clip table, as far as the sample has one; by others it may be anything."""
    if row["json_offset"] is None:
        return {}
    try:
        about = json.loads(reader.read(url, row["json_offset"], row["json_bytes"]))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _version(reader: Bytes, shard: Shard) -> str:
    """Another one whenever the shard is another."""
    try:
        stat = reader.stat(shard.url)
        parts = [_VERSION, shard.url, stat.size, stat.stamp, shard.md5]
    except OSError:
        parts = [_VERSION, shard.url, shard.md5]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _noted(file: Path) -> dict[int, Content]:
    try:
        rows = pq.read_table(file, schema=_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException):
        return {}
    return {row["place"]: Content(row["digest"], row["caption"]) for row in rows}


def _note(file: Path, known: dict[int, Content]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"place": place, **content._asdict()} for place, content in known.items() if content.digest is not None]
    with aside(file) as other:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), other)
