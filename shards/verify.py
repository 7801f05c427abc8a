"""Checking an output directory: tables, shards and index must agree, and every sample must be readable."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from curation.fingerprint import hash_file
from curation.table import Store
from shards.write import INDEX

_STATUS = {"kept", "rejected", "failed"}


def verify(store: Store, *, decode: bool = True) -> list[str]:
    """Look for anything lost, doubled, mixed up or unreadable.

    Args:
        store: the tables of an output directory, with its shards.
        decode: decode every sample and count its frames.

    Returns:
        One line per problem; empty when all is well.
    """
    problems, delivered = _check_tables(store)
    problems += _check_shards(store.root / "shards", delivered, decode=decode)
    return problems


def _check_tables(store: Store) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Problems of the tables, and the rows of the clips that shards hold."""
    problems: list[str] = []
    seen: collections.Counter[str] = collections.Counter()
    per_video: collections.Counter[str] = collections.Counter()
    delivered = {}
    for part_id, table in store.parts("clips"):
        for row in table.to_pylist():
            seen[row["clip_id"]] += 1
            per_video[row["video_id"]] += 1
            if row["status"] not in _STATUS:
                problems.append(f"clips/{part_id}: {row['clip_id']} has status {row['status']!r}")
            if row["status"] == "rejected" and not row["reason"]:
                problems.append(f"clips/{part_id}: {row['clip_id']} is rejected without a reason")
            if row["status"] == "failed" and not row["error"]:
                problems.append(f"clips/{part_id}: {row['clip_id']} failed without an error")
            if row["shard"]:
                delivered[row["clip_id"]] = row
    problems += [f"clip {clip} has {count} rows" for clip, count in seen.items() if count > 1]
    for row in store.videos().to_pylist():
        if row["status"] == "failed" and not row["error"]:
            problems.append(f"video {row['video']} failed without an error")
        if row["num_clips"] and row["num_clips"] != per_video[row["video_id"]]:
            problems.append(f"video {row['video']} has {per_video[row['video_id']]} clips, not {row['num_clips']}")
    return problems, delivered


def _check_shards(folder: Path, delivered: dict[str, dict[str, Any]], *, decode: bool) -> list[str]:
    if not folder.is_dir():
        return [f"{len(delivered)} clips point to shards, but {folder} is missing"] if delivered else []
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shardlist"]
    except (OSError, ValueError, KeyError) as error:
        return [f"{folder / INDEX} cannot be read: {error}"]
    problems = []
    listed = {shard["url"] for shard in index}
    problems += [f"{path.name} is not in {INDEX}" for path in sorted(folder.glob("*.tar")) if path.name not in listed]
    found: collections.Counter[str] = collections.Counter()
    for shard in index:
        path = folder / shard["url"]
        if not path.is_file():
            problems.append(f"{shard['url']} is missing")
            continue
        if hash_file(path, hashlib.md5(usedforsecurity=False)) != shard["md5sum"]:
            problems.append(f"{shard['url']} is not what {INDEX} says (md5)")
        keys, wrong = _check_samples(path, delivered, decode=decode)
        problems += wrong
        found.update(keys)
        if len(keys) != shard["nsamples"]:
            problems.append(f"{shard['url']} holds {len(keys)} samples, {INDEX} says {shard['nsamples']}")
    problems += [f"sample {key} stands {count} times in the shards" for key, count in found.items() if count > 1]
    problems += [
        f"clip {key} is in no shard, the table says {delivered[key]['shard']}" for key in delivered if not found[key]
    ]
    return problems


def _check_samples(path: Path, delivered: dict[str, dict[str, Any]], *, decode: bool) -> tuple[list[str], list[str]]:
    """The keys of a shard's samples, and what is wrong with them."""
    samples: dict[str, dict[str, bytes]] = {}
    problems = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                content = tar.extractfile(member)
                if content is None:
                    problems.append(f"{path.name}: {member.name} is not a file")
                else:
                    # Videos are looked at while passing by, so that only one is in memory.
                    data = content.read()
                    samples.setdefault(key, {})[suffix] = b"" if suffix == "mp4" else data
                    if suffix == "mp4" and decode:
                        problems += _check_video(path, key, data, delivered.get(key))
    except (tarfile.TarError, OSError) as error:
        return list(samples), [*problems, f"{path.name} cannot be read: {error}"]
    for key, sample in samples.items():
        if missing := {"mp4", "txt", "json"} - set(sample):
            problems.append(f"{path.name}: sample {key} lacks {', '.join(sorted(missing))}")
        row = delivered.get(key)
        if row is None or row["shard"] != path.name:
            problems.append(f"{path.name}: sample {key} is not the table's")
        elif sample.get("txt", b"").decode() != (row["caption"] or ""):
            problems.append(f"{path.name}: the caption of {key} is not the table's; run `cutroom shard` again")
    return list(samples), problems


def _check_video(path: Path, key: str, data: bytes, row: dict[str, Any] | None) -> list[str]:
    try:
        with av.open(io.BytesIO(data), "r") as container:
            count = len([frame.pts for frame in container.decode(video=0)])
    except (FFmpegError, IndexError) as error:
        return [f"{path.name}: {key}.mp4 cannot be decoded: {error}"]
    if row is not None and count != row["num_frames"]:
        return [f"{path.name}: {key}.mp4 has {count} frames, the table says {row['num_frames']}"]
    return []
