"""What is in the samples of shards, by content: a digest of each video's bytes, and its caption.

Names of samples and places of shards say nothing of what is in them. To know it a video has to be read once; that is
noted for each shard, so that only a changed shard is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shards.bytes import Bytes
from shards.read import Catalogue, Shard
from training.weights import aside

_VERSION = 1
_SCHEMA = pa.schema([("place", pa.int64()), ("digest", pa.string()), ("caption", pa.string())])


class Content(NamedTuple):
    """One sample."""

    digest: str | None  # of the video; None where it cannot be read
    caption: str


def contents(catalogue: Catalogue, *, folder: Path) -> list[Content]:
    """What is in each sample of the catalogue, in its order.

    Args:
        folder: where it is noted. Processes may do it at the same time, but then all of them read.
    """
    found: dict[int, Content] = {}
    reader = Bytes()
    try:
        for number, rows in _by_shard(catalogue):
            shard = catalogue.shards[number]
            note = folder / f"{_version(reader, shard)}.parquet"
            known = _noted(note)
            if any(row["video_offset"] not in known for _, row in rows):
                known |= {row["video_offset"]: _read(reader, shard.url, row) for _, row in rows}
                _note(note, known)
            found.update({at: known[row["video_offset"]] for at, row in rows})
    finally:
        reader.close()
    return [found[at] for at in range(len(catalogue))]


def captions(catalogue: Catalogue) -> list[str]:
    """The caption of each sample, without reading videos."""
    reader = Bytes()
    try:
        found = {
            at: _caption(reader, catalogue.shards[number].url, row)
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
    try:
        if row["text_offset"] is not None:
            return reader.read(url, row["text_offset"], row["text_bytes"]).decode("utf-8", errors="replace")
        if row["json_offset"] is not None:
            return str(json.loads(reader.read(url, row["json_offset"], row["json_bytes"])).get("caption") or "")
    except (OSError, ValueError):
        pass  # such a sample cannot be read either, which is said where that is tried
    return ""


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
