"""Writing shards: which clip goes where is a function of the table alone, and so are the bytes.

Accepted clips are ordered by clip_id and cut into shards of ``max_samples``. One shard is one unit of work and is
written aside and renamed. A clip that an earlier set of shards holds already, encoded with the same settings, is copied
from there, so that moving a threshold encodes only what was gained. The new set replaces the old one at the end.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from curation.errors import VideoError, one_line
from curation.fingerprint import hash_file
from curation.plan import ShardSettings
from curation.stage import Needs
from curation.table import SHARDED, Part, Store
from shards.encode import VERSION, encode_clip

T = TypeVar("T")

STAGE = "shards"  # named in the error of a clip that could not be delivered
INDEX = "index.json"
_PLAN = "plan.json"  # in a set of shards that is being written: what it is the result of
_NOT_IN_JSON = frozenset({"status", "reason", "error", "frame_captions", *SHARDED.names})


@dataclasses.dataclass
class WriteShard:
    """The step that writes one shard: the clips of one part, in their order."""

    settings: ShardSettings
    base: str  # relative video names are relative to this folder
    target: str  # the folder of the new set
    earlier: str  # the folder of the set before
    threads: int = 1  # clips encoded at a time
    md5sums: dict[str, str] = dataclasses.field(default_factory=dict)  # of the earlier set, by file name

    @property
    def needs(self) -> Needs:
        return Needs(cpus=self.threads)

    def setup(self) -> None:
        self._sound: dict[str, bool] = {}  # earlier shards, whether they still are what their index says

    def __call__(self, part: Part) -> Part:
        rows = part.clips.to_pylist()
        path = Path(self.target, f"{part.id}.tar")
        if path.exists() and [sample for sample, _ in members(path)] == [row["clip_id"] for row in rows]:
            errors: list[str | None] = [None] * len(rows)
        else:
            errors = self._write(path, rows, part)
        part.clips = pa.table({"clip_id": part.clips["clip_id"], "error": pa.array(errors, pa.string())})
        return part

    def close(self) -> None:
        """Nothing to release."""

    def _write(self, path: Path, rows: list[dict[str, Any]], part: Part) -> list[str | None]:
        import webdataset

        errors: list[str | None] = []
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        with open(aside, "wb") as file, ThreadPoolExecutor(self.threads) as pool:
            with webdataset.TarWriter(file, mtime=0, user="cutroom", group="cutroom") as tar:
                # The order of the samples is that of the rows, whichever clip is encoded first.
                for row, (video, how) in zip(rows, in_order(pool, self._video, rows, self.threads), strict=True):
                    errors.append(how if video is None else None)
                    if video is None:
                        continue
                    part.add(how, 1)
                    tar.write(
                        {
                            "__key__": row["clip_id"],
                            "mp4": video,
                            "txt": row["caption"] or "",
                            "json": sample_json(row, self.settings).encode(),
                        }
                    )
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        return errors

    def _video(self, row: dict[str, Any]) -> tuple[bytes, str] | tuple[None, str]:
        """The clip's MP4 and the counter that it raises, or None and the error."""
        source = os.path.join(self.base, row["video"])
        try:
            if (found := self._from_earlier(row)) is not None:
                return found, "clips_reused"
            if self.settings.video == "copy":
                return _whole_file(source), "clips_copied"
            return encode_clip(source, row, self.settings), "clips_encoded"
        except (VideoError, OSError) as error:
            return None, f"{STAGE}: {one_line(error)}"

    def _is_sound(self, path: Path) -> bool:
        """Whether a shard of the earlier set is there and undamaged; a damaged clip must not get a fresh checksum."""
        if path.name not in self._sound:
            expected = self.md5sums.get(path.name)
            there = expected is not None and path.is_file()
            self._sound[path.name] = there and hash_file(path, hashlib.md5(usedforsecurity=False)) == expected
        return self._sound[path.name]

    def _from_earlier(self, row: dict[str, Any]) -> bytes | None:
        """The clip's video from the set before, if it was encoded with the same settings."""
        path = Path(self.earlier, row["shard"] or "-")
        if not self._is_sound(path):
            return None
        try:
            with tarfile.open(path) as tar:
                about = tar.extractfile(f"{row['clip_id']}.json")
                video = tar.extractfile(f"{row['clip_id']}.mp4")
                if about is None or video is None or json.load(about)["encoding"] != encoding_key(self.settings):
                    return None
                return video.read()
        except (KeyError, ValueError, tarfile.TarError):
            return None


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[dict[str, Any]], T], rows: list[dict[str, Any]], ahead: int
) -> Iterator[T]:
    """Like ``pool.map``, but no more than ``ahead`` results wait in memory for their turn."""
    waiting: collections.deque[Future[T]] = collections.deque()
    for row in rows:
        waiting.append(pool.submit(work, row))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _whole_file(source: str) -> bytes:
    if not source.lower().endswith(".mp4"):
        raise VideoError("is not an MP4 file and cannot be copied as it is; use `video: encode`")
    return Path(source).read_bytes()


def encoding_key(settings: ShardSettings) -> str:
    """Names everything besides the clip itself that decides the bytes of its video."""
    decides = {k: v for k, v in dataclasses.asdict(settings).items() if k != "max_samples"}
    return hashlib.blake2b(json.dumps([VERSION, decides], sort_keys=True).encode(), digest_size=5).hexdigest()


def sample_json(row: dict[str, Any], settings: ShardSettings) -> str:
    """The clip's row without bulky columns, as it stands in the shard."""
    about = {name: _finite(value) for name, value in row.items() if name not in _NOT_IN_JSON}
    return json.dumps({**about, "encoding": encoding_key(settings)}, ensure_ascii=False, sort_keys=True)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value  # JSON has no NaN


def members(path: Path) -> Iterator[tuple[str, int]]:
    """(key, bytes of the video) of the samples in a shard."""
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.rpartition(".")
            if suffix == "mp4":
                yield key, member.size


def read_index(folder: Path) -> dict[str, Any]:
    """``index.json`` of a set of shards; empty where there is none that can be understood."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        wanted = {"url", "nsamples", "filesize", "md5sum"}
        return index if all(wanted <= shard.keys() for shard in index["shardlist"]) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class ShardSet:
    """The shards of one output directory: what they should be, and making them so."""

    def __init__(self, store: Store, settings: ShardSettings) -> None:
        self.store, self.settings = store, settings
        self.folder, self.aside, self.before = (store.root / name for name in ("shards", "shards.new", "shards.old"))

    def accepted(self) -> pa.Table:
        """The clips that belong into shards: kept ones, and those that could not be delivered the last time."""
        tables = []
        for _, table in self.store.parts("clips"):
            status, error = table["status"].to_pylist(), table["error"].to_pylist()
            wanted = [
                s == "kept" or (e is not None and e.startswith(f"{STAGE}:")) for s, e in zip(status, error, strict=True)
            ]
            tables.append(table.filter(pa.array(wanted, pa.bool_())))
        if not tables:
            return pa.table({"clip_id": pa.array([], pa.string())})
        return pa.concat_tables(tables, promote_options="default").sort_by("clip_id")

    def parts(self) -> list[Part]:
        """One part of work per shard."""
        clips, size = self.accepted(), self.settings.max_samples
        return [
            Part(f"{i:06d}", clips=clips.slice(start, size)) for i, start in enumerate(range(0, clips.num_rows, size))
        ]

    def step(self, base: str, threads: int) -> WriteShard:
        md5sums = {shard["url"]: shard["md5sum"] for shard in read_index(self.folder).get("shardlist", [])}
        return WriteShard(self.settings, base, str(self.aside), str(self.folder), threads, md5sums)

    def key(self, parts: list[Part]) -> str:
        """Changes when any byte of the shards would."""
        digest = hashlib.blake2b(digest_size=12)
        for part in parts:
            for row in part.clips.to_pylist():
                digest.update(json.dumps([part.id, sample_json(row, self.settings), row["caption"]]).encode())
        return digest.hexdigest()

    def is_done(self, key: str, parts: list[Part], *, thorough: bool = False) -> bool:
        """Whether the shards in place are the result of ``key``, all there, and no clip is missing in them.

        ``thorough`` compares their content with the index, and not only their sizes.
        """
        index = read_index(self.folder)
        if not index or index.get("cutroom", {}).get("key") != key:
            return False
        if sum(shard["nsamples"] for shard in index["shardlist"]) != sum(part.clips.num_rows for part in parts):
            return False
        for shard in index["shardlist"]:
            path = self.folder / shard["url"]
            if not path.is_file() or path.stat().st_size != shard["filesize"]:
                return False
            if thorough and hash_file(path, hashlib.md5(usedforsecurity=False)) != shard["md5sum"]:
                return False
        return True

    def begin(self, key: str) -> None:
        """Make ready for writing; shards of the same plan that a killed run finished are kept."""
        if not self.folder.exists() and self.before.exists():
            self.before.rename(self.folder)  # killed while the sets were being exchanged
        plan = self.aside / _PLAN
        if not plan.exists() or plan.read_text() != key:
            shutil.rmtree(self.aside, ignore_errors=True)
            self.aside.mkdir(parents=True)
            plan.write_text(key)
        for leftover in self.aside.glob("*.tmp"):
            leftover.unlink()

    def finish(self, key: str, done: list[Part]) -> None:
        """Write the index and put the new set in the place of the old one."""
        shardlist = []
        for part in sorted(done, key=lambda part: part.id):
            path = self.aside / f"{part.id}.tar"
            count = part.clips["error"].null_count
            if not count:
                path.unlink()
                continue
            md5, size = hash_file(path, hashlib.md5(usedforsecurity=False)), path.stat().st_size
            shardlist.append({"url": path.name, "nsamples": count, "filesize": size, "md5sum": md5})
        index = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": "cutroom",
            "cutroom": {"key": key},
            "shardlist": shardlist,
        }
        (self.aside / INDEX).write_text(json.dumps(index, indent=1))
        (self.aside / _PLAN).unlink()
        shutil.rmtree(self.before, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self.before)
        self.aside.rename(self.folder)
        shutil.rmtree(self.before, ignore_errors=True)

    def record(self, done: list[Part]) -> None:
        """Tell the clip table where each clip lies, and which could not be delivered.

        Args:
            done: one part per shard; its clips' ``error`` is null for those that the shard holds.
        """
        place = {}
        for part in done:
            for clip in part.clips.select(["clip_id", "error"]).to_pylist():
                place[clip["clip_id"]] = (f"{part.id}.tar", clip["error"])
        for part_id, table in self.store.parts("clips"):
            rows = table.to_pylist()
            for row in rows:
                shard, error = place.get(row["clip_id"], (None, None))
                delivered = shard is not None and error is None
                row["shard"], row["sample_key"] = (shard, row["clip_id"]) if delivered else (None, None)
                if shard is not None:
                    row["status"], row["error"] = ("failed", error) if error else ("kept", None)
            changed = pa.Table.from_pylist(rows, schema=table.schema)
            if not changed.equals(table):
                self.store.write("clips", part_id, changed)
