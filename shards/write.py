"""Writing shards: which clip goes where is a function of the table alone, and so are the bytes.

Accepted clips are ordered by clip_id and cut into shards of ``max_samples``. One shard is one unit of work and is
written aside and renamed. A clip that an earlier set of shards holds already, encoded with the same settings, is copied
from there, so that moving a threshold encodes only what was gained. The new set replaces the old one at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.files import LEFTOVERS
from curation.fingerprint import hash_file
from curation.plan import ShardSettings
from curation.table import VIDEOS, Part, Store, caption_of
from shards.pack import FROM_VIDEO, STAGE, WriteShard, sample_json

__all__ = ["INDEX", "STAGE", "ShardSet", "read_index"]

INDEX = "index.json"
_PLAN = "plan.json"  # in a set of shards that is being written: what it is the result of


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
        for part_id, table in self.store.parts("clips"):
            videos = self.store.read("videos", part_id)
            video_ids = table["video_id"].to_pylist()
            for name, column in FROM_VIDEO.items():
                known = dict(zip(videos["video_id"].to_pylist(), videos[column].to_pylist(), strict=True))
                found = pa.array([known.get(video_id) for video_id in video_ids], VIDEOS.field(column).type)
                table = table.append_column(name, found)
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
                digest.update(json.dumps([part.id, sample_json(row, self.settings), caption_of(row)]).encode())
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
        self._sweep()

    def _sweep(self) -> None:
        for leftover in self.aside.glob(LEFTOVERS):  # of workers that were killed
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
        self._sweep()
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
