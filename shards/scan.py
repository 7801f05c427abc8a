"""What one shard holds: where each sample's members lie and what its video is, without reading the videos.

Only tar headers and the small json members are read. A shard without json (a stranger's) has the headers of its videos
read too. Whatever is wrong with a shard or a sample is a fault with a name; nothing raises.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pyarrow as pa

from curation.errors import CutroomError, VideoError, one_line
from shards.bytes import Bytes, RangeFile, file_name

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "mov", "m4v", "avi")
_CAPTION_SUFFIXES = ("txt", "caption")
_MOST_JSON_BYTES = 4 << 20  # a row of scores and texts has no more
_MOST_WORD = 64  # longer texts are no columns that rules ask for
_BLOCK = 512  # of tar
_BROKEN_OFF = ("damaged_tar", "unreadable_tar")  # faults that hide what follows
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # webdataset's: the key ends at the first dot of the last part
ROW = "row."  # columns of the clips' rows are told from the catalogue's own by this

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("video_offset", pa.int64()),
        ("video_bytes", pa.int64()),
        ("text_offset", pa.int64()),  # of the caption; null where there is none
        ("text_bytes", pa.int64()),
        ("caption_bytes", pa.int64()),  # of the text, or of the row's caption where there is no text; 0: none
        ("json_offset", pa.int64()),
        ("json_bytes", pa.int64()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),  # frames ÷ duration, as in the clip table
        ("width", pa.int32()),  # as displayed
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("how", pa.string()),  # encoded | remuxed | copied by us; null: a stranger's
    ]
)


class Fault(NamedTuple):
    """Something that is wrong with a shard or a sample."""

    reason: str  # one word of a small set, to count by
    name: str  # 000012.tar, or 000012.tar:key
    why: str
    num_samples: int = 1  # samples that it costs; 0 for one that is only noted
    passing: bool = False  # not of the shard but of reading it now; another scan may not find it


class Scan(NamedTuple):
    """What was found in one shard."""

    table: pa.Table  # COLUMNS, and row.* columns
    faults: list[Fault]

    @property
    def lasting(self) -> bool:
        """Whether another scan of the same shard would find the same."""
        return not any(fault.passing for fault in self.faults)


class Facts(NamedTuple):
    """What a video is, by its header."""

    num_frames: int
    fps: float
    width: int
    height: int
    codec: str


# url, offset, bytes -> facts, or why the header does not tell them; raises where it could not be looked at.
Probe = Callable[[str, int, int], Facts | str]


def scan(url: str, size: int, expected: int | None, probe: Probe) -> Scan:
    """Read the headers of one shard.

    Args:
        url: path or address of the tar.
        size: its bytes.
        expected: how many samples its index says it has, so that what a damage hides is counted.
        probe: reads the header of a video that has no row beside it.
    """
    reader, shard = Bytes(), file_name(url)
    try:
        members, faults = _members(reader, url, size)
        if (cut_off := _cut_off(members)) is not None and any(fault.reason in _BROKEN_OFF for fault in faults):
            del members[cut_off]
        rows = []
        for key, parts in members.items():
            row = _sample(reader, url, key, parts, faults, probe)
            if row is not None:
                rows.append(row)
    finally:
        reader.close()
    if expected is not None and (lost := expected - len(members)) > 0:
        damage = next((i for i, fault in enumerate(faults) if fault.reason in _BROKEN_OFF), None)
        if damage is None:
            faults.append(Fault("damaged_tar", shard, f"{lost} samples fewer than its index says", lost))
        else:
            faults[damage] = faults[damage]._replace(num_samples=lost)
    return Scan(_table(rows), faults)


def _unread(reason: str, name: str, error: BaseException) -> Fault:
    """What could not be looked at now, whatever it is worth."""
    return Fault(reason, name, f"reading failed: {one_line(error)}", passing=True)


def _cut_off(members: dict[str, dict[str, tuple[int, int]]]) -> str | None:
    """The last sample before a damage, if it lacks what the first has: its caption may be what is lost."""
    if not members:
        return None
    first, last = next(iter(members)), next(reversed(members))
    return last if members[first].keys() - members[last].keys() else None


def _members(reader: Bytes, url: str, size: int) -> tuple[dict[str, dict[str, tuple[int, int]]], list[Fault]]:
    """Key -> suffix -> (offset, bytes), in the order of the shard."""
    shard, found, faults = file_name(url), dict[str, dict[str, tuple[int, int]]](), list[Fault]()
    file = RangeFile(reader, url, 0, size)  # of a local file too: it seeks anywhere, so an OSError is one of reading
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # else every header of the shard stays in memory
                _add(member, size, shard, found, faults)
            # tarfile takes a damaged header for the end.
            file.seek(tar.offset)
            end = file.read(_BLOCK)
            if end.strip(b"\0"):
                faults.append(Fault("damaged_tar", shard, f"damaged at byte {tar.offset}"))
            elif len(end) < _BLOCK:  # whether something is lost only an index can tell
                faults.append(Fault("damaged_tar", shard, "is cut off: it lacks the mark at the end", 0))
    except OSError as error:
        faults.append(_unread("unreadable_tar", shard, error))
    except (tarfile.TarError, EOFError, ValueError) as error:
        faults.append(Fault("damaged_tar", shard, one_line(error)))
    return found, faults


def _add(
    member: tarfile.TarInfo, size: int, shard: str, found: dict[str, dict[str, tuple[int, int]]], faults: list[Fault]
) -> None:
    name = member.name.removeprefix("./")
    if member.isdir() or name.rpartition("/")[2].startswith(("__", "._")):  # about the shard, or of an archiver
        return
    parts = _NAME.fullmatch(name)
    if parts is None or not member.isreg() or name.startswith("/") or ".." in name.split("/") or not name.isprintable():
        faults.append(Fault("bad_name", f"{shard}:{name[:100]!r}", "is no file that a sample may have", 0))
        return
    key, suffix = parts[1], parts[2].lower()
    sample = found.setdefault(key, {})
    if suffix in sample:
        faults.append(Fault("duplicate", f"{shard}:{key}", f"has {suffix} twice; the first is read", 0))
    elif member.offset_data + member.size > size:
        faults.append(Fault("damaged_tar", f"{shard}:{key}", f"{suffix} is cut off", 0))
    else:
        sample[suffix] = (member.offset_data, member.size)


def _sample(
    reader: Bytes, url: str, key: str, parts: dict[str, tuple[int, int]], faults: list[Fault], probe: Probe
) -> dict[str, Any] | None:
    name = f"{file_name(url)}:{key}"
    video = next((parts[suffix] for suffix in VIDEO_SUFFIXES if suffix in parts), None)
    if video is None:
        faults.append(Fault("no_video", name, f"has only {', '.join(sorted(parts)) or 'a part of a video'}"))
        return None
    about: dict[str, Any] = {}
    if "json" in parts:
        try:
            about = _json(reader, url, *parts["json"])
        except OSError as error:
            faults.append(_unread("unreadable", name, error))
            return None
        except ValueError as error:
            faults.append(Fault("bad_json", name, one_line(error)))
            return None
    facts: Facts | str | None = _facts(about)
    if facts is None:
        try:
            facts = probe(url, *video)
        except Exception as error:  # whatever a stranger's file does, it costs one sample
            if isinstance(error, CutroomError) and not isinstance(error, VideoError):
                raise  # no file is to blame that a child cannot be started
            faults.append(_unread("unreadable" if isinstance(error, OSError) else "crashed", name, error))
            return None
    if isinstance(facts, str):
        faults.append(Fault("bad_video", name, facts))
        return None
    text = next((parts[suffix] for suffix in _CAPTION_SUFFIXES if suffix in parts), None)
    own, told = about.get("encoding"), about.get("caption")
    return {
        "key": key,
        "video_offset": video[0],
        "video_bytes": video[1],
        "text_offset": text[0] if text else None,
        "text_bytes": text[1] if text else None,
        "caption_bytes": text[1] if text else len(told.encode()) if isinstance(told, str) else 0,
        "json_offset": parts["json"][0] if "json" in parts else None,
        "json_bytes": parts["json"][1] if "json" in parts else None,
        **facts._asdict(),
        "how": own.get("how") if isinstance(own, dict) else None,
        **{ROW + column: plain for column, value in about.items() if (plain := _plain(value)) is not None},
    }


def _json(reader: Bytes, url: str, offset: int, size: int) -> dict[str, Any]:
    if size > _MOST_JSON_BYTES:
        raise ValueError(f"json of {size} bytes")
    try:
        about = json.loads(reader.read(url, offset, size))
    except RecursionError as error:
        raise ValueError("json is nested too deeply") from error
    if not isinstance(about, dict):
        raise ValueError(f"json holds a {type(about).__name__}, not a row")
    return about


def _facts(about: dict[str, Any]) -> Facts | None:
    """What the row says of the video, if it says everything and that can be."""
    numbers = [about.get(name) for name in ("num_frames", "fps", "width", "height")]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < 1e9 for n in numbers):
        return None
    codec = about.get("codec")
    if not isinstance(codec, str):
        return None
    frames, fps, width, height = (float(n) for n in numbers if n is not None)
    return Facts(int(frames), fps, int(width), int(height), codec)


def _plain(value: Any) -> Any:
    """A value as a column holds it: a number, a word or a list of words; None for anything else."""
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) <= sys.float_info.max else None
    if isinstance(value, str):
        return value if len(value) <= _MOST_WORD else None
    if isinstance(value, list) and value and all(isinstance(word, str) and len(word) <= _MOST_WORD for word in value):
        return value
    return None


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table; a column of the clips' rows that is of several kinds is of the kind most have."""
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    names = sorted({name for row in rows for name in row if name.startswith(ROW)})
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = [type(value) for value in values if value is not None]
        kind = max(set(kinds), key=lambda k: (kinds.count(k), k.__name__))
        arrow = {float: pa.float64(), str: pa.string(), list: pa.list_(pa.string())}[kind]
        table = table.append_column(name, pa.array([v if type(v) is kind else None for v in values], arrow))
    return table
