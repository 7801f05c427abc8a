"""Checking an output directory: tables, shards and index must agree, and every sample must be readable."""

from __future__ import annotations

import collections
import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.errors import CutroomError, VideoError, one_line
from curation.fingerprint import hash_file
from curation.table import CLEANED, NOT_DECODED, Store, caption_of
from shards.probe import Probing, count_frames
from shards.write import INDEX, read_index

Count = Callable[[str, int, int], int]  # path, offset, bytes -> frames; raises where it cannot be decoded

_STATUS = {"kept", "rejected", "failed"}
_AGAIN = "run `cutroom shard` to write it again"


def verify(store: Store, *, decode: bool = True) -> list[str]:
    """Look for anything lost, doubled, mixed up or unreadable.

    Args:
        store: the tables of an output directory, with its shards.
        decode: decode every sample and count its frames.

    Returns:
        One line per problem; empty when all is well.
    """
    problems, clips = _check_tables(store)
    with Probing(count_frames) as count:
        problems += _check_shards(store.root / "shards", clips, count if decode else None)
    # What stands in a shard, such as the name of a member, may be no text that can be printed.
    return [problem.encode(errors="backslashreplace").decode() for problem in problems]


def _check_tables(store: Store) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Problems of the tables, and the clips by id."""
    problems: list[str] = []
    clips: dict[str, dict[str, Any]] = {}
    per_video: collections.Counter[str] = collections.Counter()
    columns = ["clip_id", "video_id", "status", "reason", "error", "num_frames", "caption", *CLEANED.names, "shard"]
    for part_id, table in store.parts("clips", columns):
        for row in table.to_pylist():
            clip = row["clip_id"]
            if clip in clips:
                problems.append(f"clip {clip} has more than one row")
            clips[clip] = row
            per_video[row["video_id"]] += 1
            problems += [f"clips/{part_id}: {clip} {wrong}" for wrong in _wrong_with(row)]
    for part_id, table in store.parts("videos"):
        for row in table.to_pylist():
            if row["status"] == "failed" and not row["error"]:
                problems.append(f"video {row['video']} failed without an error")
            if part_id != NOT_DECODED and row["num_clips"] != per_video[row["video_id"]]:
                problems.append(f"video {row['video']} has {per_video[row['video_id']]} clips, not {row['num_clips']}")
    sheets = {clip for _, table in store.parts("frames", ["clip_id"]) for clip in table["clip_id"].to_pylist()}
    problems += [f"clip {clip} has no contact sheet" for clip in clips if clip not in sheets]
    problems += [f"a contact sheet belongs to {clip}, which is no clip" for clip in sorted(sheets - set(clips))]
    return problems, clips


def _wrong_with(row: dict[str, Any]) -> list[str]:
    wrong = []
    if row["status"] not in _STATUS:
        wrong.append(f"has status {row['status']!r}")
    if row["status"] == "rejected" and not row["reason"]:
        wrong.append("is rejected without a reason")
    if row["status"] == "failed" and not row["error"]:
        wrong.append("failed without an error")
    return wrong


def _check_shards(folder: Path, clips: dict[str, dict[str, Any]], count: Count | None) -> list[str]:
    delivered = [clip for clip, row in clips.items() if row["shard"]]
    if not folder.is_dir():
        return [f"{len(delivered)} clips point to shards, but {folder} is missing; {_AGAIN}"] if delivered else []
    index = read_index(folder).get("shardlist")
    if index is None:
        return [f"{folder / INDEX} cannot be read; {_AGAIN}"]
    problems = []
    listed = {shard["url"] for shard in index}
    problems += [f"{path.name} is not in {INDEX}" for path in sorted(folder.glob("*.tar")) if path.name not in listed]
    found: collections.Counter[str] = collections.Counter()
    for shard in index:
        path = folder / shard["url"]
        if path.name != shard["url"] or not path.is_file():
            problems.append(f"{shard['url']} is missing; {_AGAIN}")
            continue
        if hash_file(path, hashlib.md5(usedforsecurity=False)) != shard["md5sum"]:
            problems.append(f"{shard['url']} is not what {INDEX} says (md5); {_AGAIN}")
        keys, wrong = _check_samples(path, clips, count)
        problems += wrong
        found.update(keys)
        if len(keys) != shard["nsamples"]:
            problems.append(f"{shard['url']} holds {len(keys)} samples, {INDEX} says {shard['nsamples']}")
    problems += [f"sample {key} stands {times} times in the shards" for key, times in found.items() if times > 1]
    for clip, row in clips.items():
        if row["status"] == "kept" and not found[clip]:
            problems.append(f"clip {clip} is kept and in no shard; {_AGAIN}")
    return problems


def _check_samples(path: Path, clips: dict[str, dict[str, Any]], count: Count | None) -> tuple[list[str], list[str]]:
    """The keys of a shard's samples, and what is wrong with them."""
    samples: dict[str, dict[str, bytes]] = {}
    videos: dict[str, tuple[int, int]] = {}  # key -> offset, bytes
    problems = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None:
                    problems.append(f"{path.name}: {member.name} is not a file")
                elif suffix == "mp4":
                    samples.setdefault(key, {})[suffix] = b""
                    videos[key] = member.offset_data, member.size
                else:
                    samples.setdefault(key, {})[suffix] = content.read()
    except Exception as error:  # whatever a shard holds, the others are looked at
        return list(samples), [*problems, f"{path.name} cannot be read: {error}"]
    for key, sample in samples.items():
        problems += [f"{path.name}: {wrong}" for wrong in _wrong_with_sample(path, key, sample, clips.get(key))]
        if count is not None and key in videos:
            shown = _shown(count, path, *videos[key])
            problems += [
                f"{path.name}: {key}.mp4 {wrong}" for wrong in _wrong_with_video(shown, sample, clips.get(key))
            ]
    return list(samples), problems


def _wrong_with_sample(path: Path, key: str, sample: dict[str, bytes], row: dict[str, Any] | None) -> list[str]:
    wrong = []
    if missing := {"mp4", "txt", "json"} - set(sample):
        wrong.append(f"sample {key} lacks {', '.join(sorted(missing))}")
    if row is None:
        wrong.append(f"sample {key} is no clip of the table; {_AGAIN}")
    elif row["status"] != "kept":
        wrong.append(f"{key} is {row['status']} in the table; {_AGAIN}")
    elif row["shard"] != path.name:
        wrong.append(f"the table says that {key} lies in {row['shard']}; {_AGAIN}")
    elif sample.get("txt", b"") != (caption_of(row) or "").encode():
        wrong.append(f"the caption of {key} is not the table's; {_AGAIN}")
    return wrong


def _shown(count: Count, path: Path, offset: int, size: int) -> int | str:
    """How many frames a video shows, or why it cannot be decoded."""
    try:
        return count(str(path), offset, size)
    except Exception as error:  # whatever one video does, the others are looked at
        if isinstance(error, CutroomError) and not isinstance(error, VideoError):
            raise
        return f"cannot be decoded: {one_line(error)}"


def _wrong_with_video(shown: int | str, sample: dict[str, bytes], row: dict[str, Any] | None) -> list[str]:
    if isinstance(shown, str):
        return [shown]
    try:
        about = json.loads(sample.get("json", b""))
        said, resampled = about["num_frames"], about["encoding"]["fps"] is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return [f"has no readable description beside it; {_AGAIN}"]
    wrong = [f"has {shown} frames, its json says {said}"] if shown != said else []
    if row is not None and shown != row["num_frames"] and not resampled:
        wrong.append(f"has {shown} frames, the table says {row['num_frames']}")
    return wrong
