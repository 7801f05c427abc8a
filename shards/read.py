"""Reading shards: which there are, and a catalogue of their samples that is made once and kept.

The catalogue says where each sample's bytes lie and what its video is, so that a loader can plan an epoch without
opening a shard, and read one sample with one request. It stays small: Arrow columns, and of the clips' rows only those
that are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import UsageError, nearest, one_line
from curation.files import aside
from shards.bytes import Bytes, beside, file_name, filesystem, hidden, is_http, is_remote
from shards.probe import Probing, facts_of
from shards.scan import COLUMNS, ROW, Fault, Scan, scan

__all__ = ["Catalogue", "Fault", "Shard", "find_shards", "read_catalogue"]

_VERSION = 2  # raise it when a scan would find something else in the same shard
_INDEX = "index.json"
_FAULTS = b"cutroom.faults"
_REMOTE_SCANS = 8  # shards whose headers are read at a time: the time goes into waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar of samples, and what its index says of it."""

    url: str
    num_samples: int | None = None
    size: int | None = None
    md5: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The samples of a set of shards, in the order of the shards.

    Attributes:
        shards: where ``table["shard"]`` points to.
        table: ``shards.scan.COLUMNS``, ``shard`` (int32), and a column ``row.NAME`` for each column that was asked for.
        faults: what is wrong with shards and samples that are not in the table.
    """

    shards: tuple[Shard, ...]
    table: pa.Table
    faults: tuple[Fault, ...]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the samples, their order, the shards they are in, and their lengths and sizes."""
        digest = hashlib.blake2b(digest_size=12)
        for name in ("key", "shard", "num_frames", "fps", "width", "height", "video_bytes"):
            digest.update(_column_bytes(self.table[name]))
        return digest.hexdigest()


def _column_bytes(column: pa.ChunkedArray) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"": column.combine_chunks()})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def find_shards(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Shard]:
    """The shards that are meant.

    Args:
        source: the output folder of a run, a folder of shards, an ``index.json``, a tar, a pattern such as
            ``data/{000000..000011}.tar`` or ``data/*.tar``; paths or addresses (http, https, and what fsspec knows,
            such as s3 and gs). Or a list of such.

    Raises:
        UsageError: there are none.
    """
    if not isinstance(source, str | os.PathLike):
        found = [shard for one in source for shard in find_shards(one)]
        if not found:
            raise UsageError("no shards are named; give a folder, an index.json or a pattern of tars")
        return _refuse_twice(found)
    name = os.fspath(source)
    reader = Bytes()
    try:
        if (tars := _matching(name)) is not None:
            if not tars:
                raise UsageError(f"{hidden(name)} matches no file")
            return _refuse_twice([Shard(url=url) for url in tars])
        if name.endswith(".json"):
            return _indexed(reader, name)
        if file_name(name).endswith(".tar"):
            if not is_remote(name) and not os.path.isfile(name):
                raise UsageError(f"{name} is no file")
            return [Shard(url=name)]
        return _in_folder(reader, name.rstrip("/"))
    finally:
        reader.close()


def read_catalogue(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    cache: str | os.PathLike[str] | None = None,
    columns: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> Catalogue:
    """What a set of shards holds. Only headers are read, and with ``cache`` only once.

    Args:
        source: as for ``find_shards``.
        cache: a folder for what was found, one Parquet file a shard, named by address, size and version. A shard that
            could not be read to its end, or with a video that a decoder crashed on, is looked at again the next time.
        columns: of the clips' rows; a column that no shard has is an error.
        optional: more of them, which are left out where no shard has them.

    Raises:
        UsageError: there are no shards, none can be read, or a column is unknown.
    """
    shards, needed = find_shards(source), sorted(set(columns))
    wanted = sorted({*needed, *optional})
    folder = Path(cache) if cache is not None else None
    many = _REMOTE_SCANS if any(is_remote(shard.url) for shard in shards) else 1
    with ThreadPoolExecutor(many) as pool:
        scans = list(pool.map(lambda shard: _scan(shard, folder, wanted), shards))
    faults = tuple(fault for found, _ in scans for fault in found.faults)
    tables = [
        found.table.append_column("shard", pa.array([i] * found.table.num_rows, pa.int32()))
        for i, (found, _) in enumerate(scans)
    ]
    known = {name.removeprefix(ROW) for _, names in scans for name in names}
    if not sum(table.num_rows for table in tables):
        why = f" The first thing that is wrong: {faults[0].name}: {faults[0].why}" if faults else ""
        raise UsageError(f"{len(shards)} shards hold no sample that can be read.{why}")
    if missing := [name for name in needed if name not in known]:
        raise UsageError(f"no row of the shards has a number or word {missing[0]!r}.{nearest(missing[0], known)}")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"a column is a number in one shard and a word in another: {one_line(error)}") from error
    return Catalogue(shards=tuple(shards), table=table.combine_chunks(), faults=faults)


def _scan(shard: Shard, folder: Path | None, columns: list[str]) -> tuple[Scan, list[str]]:
    """One shard with the columns that are asked for, and the names of all columns of its rows."""
    reader = Bytes()
    try:
        stat = reader.stat(shard.url)
    except OSError as error:
        lost = shard.num_samples if shard.num_samples is not None else 1
        fault = Fault("unreadable_tar", file_name(shard.url), one_line(error), lost)
        return Scan(COLUMNS.empty_table(), [fault]), []
    finally:
        reader.close()
    where = None
    if folder is not None:
        version = json.dumps([_VERSION, shard.url, stat.size, stat.stamp, shard.md5, shard.num_samples])
        where = folder / f"{hashlib.blake2b(version.encode(), digest_size=16).hexdigest()}.parquet"
    if where is not None and (kept := _from_cache(where, columns)) is not None:
        return kept
    with Probing(facts_of) as probe:
        found = scan(shard.url, stat.size, shard.num_samples, probe)
    if where is not None and found.lasting:
        _to_cache(where, found)
    names = [name for name in found.table.column_names if name.startswith(ROW)]
    wanted = [*COLUMNS.names, *(ROW + name for name in columns if ROW + name in names)]
    return Scan(found.table.select(wanted), found.faults), names


def _from_cache(path: Path, columns: list[str]) -> tuple[Scan, list[str]] | None:
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.startswith(ROW)]
            wanted = [*COLUMNS.names, *(ROW + name for name in columns if ROW + name in names)]
            table = file.read(columns=wanted)
            faults = [Fault(*fault) for fault in json.loads(table.schema.metadata[_FAULTS])]
            return Scan(table.replace_schema_metadata(None), faults), names
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # not there, or of a process that was killed: it is made again


def _to_cache(path: Path, found: Scan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as file:
        pq.write_table(found.table.replace_schema_metadata({_FAULTS: json.dumps(found.faults)}), file)


def _indexed(reader: Bytes, url: str) -> list[Shard]:
    """The shards that an index in the form of wids lists."""
    try:
        index = json.loads(reader.whole(url))
        shards = [
            Shard(
                url=beside(url, str(entry["url"])),
                num_samples=int(entry["nsamples"]),
                size=entry.get("filesize"),
                md5=entry.get("md5sum"),
            )
            for entry in index["shardlist"]
        ]
    except OSError as error:
        raise UsageError(f"cannot read {hidden(url)}: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{hidden(url)} is no index of shards (wids): {one_line(error)}") from error
    if not shards:
        raise UsageError(f"{hidden(url)} lists no shards")
    return _refuse_twice(shards)


def _in_folder(reader: Bytes, folder: str) -> list[Shard]:
    """A folder with an index, or with tars; itself or its ``shards``."""
    places, why = [folder, f"{folder}/shards"], ""
    for place in places:
        index = f"{place}/{_INDEX}"
        try:
            reader.stat(index)
        except OSError as error:
            why = f" ({one_line(error)})" if is_remote(folder) else ""
            continue
        return _indexed(reader, index)
    for place in () if is_http(folder) else places:  # http lists no folders
        if tars := _matching(f"{place}/*.tar"):
            return [Shard(url=url) for url in tars]
    raise UsageError(f"{hidden(folder)} has no {_INDEX} and no tars, and neither has its folder shards{why}")


def _matching(pattern: str) -> list[str] | None:
    """The files that a pattern means, sorted where it has stars; None if it is none."""
    if not re.search(r"[*{]", pattern) or os.path.exists(pattern):
        return None
    found: list[str] = []
    for one in expand(pattern):
        if "*" not in one:
            found.append(one)
        elif is_http(one):
            raise UsageError(f"{hidden(one)}: http lists no files; write {{000000..000011}} instead of *")
        elif is_remote(one):
            fs, path = filesystem(one)
            found += sorted(fs.unstrip_protocol(match) for match in fs.glob(path))
        else:
            found += sorted(glob.glob(one))
    return found


def expand(pattern: str) -> list[str]:
    """Braces as in a shell: ``{000..012}`` counts and keeps the zeros, ``{a,b}`` lists."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    inside = braces[1]
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = counted.groups()
        words = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    elif "," in inside:
        words = inside.split(",")
    else:
        raise UsageError(f"{hidden(pattern)}: {{{inside}}} is neither a range such as {{000..011}} nor a list {{a,b}}")
    return [name for word in words for name in expand(pattern[: braces.start()] + word + pattern[braces.end() :])]


def _refuse_twice(shards: list[Shard]) -> list[Shard]:
    seen: set[str] = set()
    for shard in shards:
        if shard.url in seen:
            raise UsageError(f"{hidden(shard.url)} is named twice; its samples would be read twice")
        seen.add(shard.url)
    return shards
