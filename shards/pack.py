"""Packing one shard: its clips are cut in child processes and written in the order of the rows, so bytes never vary."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import queue
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from curation.errors import CutroomError, VideoError, one_line
from curation.files import aside, flush
from curation.fingerprint import fingerprint, hash_file
from curation.isolate import Isolated
from curation.plan import ShardSettings
from curation.stage import Needs
from curation.table import SHARDED, Part, caption_of
from shards.codecs import crf_of, preset_of
from shards.encode import VERSION, Cut, Cutter

T = TypeVar("T")

STAGE = "shards"  # named in the error of a clip that could not be delivered
# What a clip's row is given of its video's row: column -> the name that it has there.
FROM_VIDEO = {
    "seekable": "seekable",
    "source_frames": "num_frames",
    "source_bytes": "bytes",
    "source_mtime_ns": "mtime_ns",
}
# What says how a row came about, or is bulky. Without `measured`, a stage that is set otherwise and measures the same
# changes no byte of a sample.
_NOT_IN_JSON = frozenset(
    {"status", "reason", "error", "measured", "frame_captions", "video_hash", *FROM_VIDEO, *SHARDED.names}
)
_DECIDES_NOTHING = frozenset({"max_samples", "stall_s"})  # about the bytes of a clip
_MEMORY_BYTES = 6 << 30  # decoder and encoder of one clip; slow presets look far ahead
_FACTS = ("num_frames", "fps", "width", "height", "codec", "has_audio")


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
        self._changed: dict[str, bool] = {}  # the sources of one shard, whether they are others than were decoded
        self._looking = threading.Lock()
        self._cutters = Cutters(self.settings, self.threads)

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
        """End the child processes."""
        self._cutters.close()

    def _write(self, path: Path, rows: list[dict[str, Any]], part: Part) -> list[str | None]:
        import webdataset

        self._changed.clear()
        errors: list[str | None] = []
        with aside(path) as place:
            with (
                open(place, "wb") as file,
                ThreadPoolExecutor(self.threads) as pool,
                webdataset.TarWriter(file, mtime=0, user="cutroom", group="cutroom") as tar,
            ):
                # The order of the samples is that of the rows, whichever clip is encoded first.
                for row, cut in zip(rows, in_order(pool, self._cut, rows, self.threads), strict=True):
                    if isinstance(cut, str):
                        errors.append(cut)
                        continue
                    errors.append(None)
                    part.add(f"clips_{cut.by}", 1)
                    if cut.why:
                        part.add("clips_not_remuxed", 1)
                    tar.write(
                        {
                            "__key__": row["clip_id"],
                            "mp4": cut.mp4,
                            "txt": caption_of(row) or "",
                            "json": sample_json(row, self.settings, cut).encode(),
                        }
                    )
            flush(place)
        return errors

    def _cut(self, row: dict[str, Any]) -> Cut | str:
        """The clip, or the error that it failed with."""
        source = os.path.join(self.base, row["video"])
        try:
            if self.settings.video == "copy":
                _refuse_a_part(row)
            if (found := self._from_earlier(row)) is not None:
                return found
            if self._has_changed(source, row):
                raise VideoError("the file has changed since it was decoded; run `cutroom run` again")
            if self.settings.video == "copy":
                return Cut(_whole_file(source), "copied", {name: row[name] for name in _FACTS})
            return self._cutters(source, row)
        except CutroomError as error:
            if not isinstance(error, VideoError):
                raise
            return f"{STAGE}: {one_line(error)}"
        except Exception as error:  # whatever one source does, it costs only its clip
            return f"{STAGE}: {one_line(error)}"

    def _has_changed(self, source: str, row: dict[str, Any]) -> bool:
        """Whether a file is another one than was decoded, and the caption not of what it shows."""
        with self._looking:  # the clips of a file come together, and it is read for one of them only
            if source not in self._changed:
                self._changed[source] = _is_another(source, row)
            return self._changed[source]

    def _is_sound(self, path: Path) -> bool:
        """Whether a shard of the earlier set is there and undamaged; a damaged clip must not get a fresh checksum."""
        if path.name not in self._sound:
            expected = self.md5sums.get(path.name)
            there = expected is not None and path.is_file()
            self._sound[path.name] = there and hash_file(path, hashlib.md5(usedforsecurity=False)) == expected
        return self._sound[path.name]

    def _from_earlier(self, row: dict[str, Any]) -> Cut | None:
        """The clip from the set before, if it was made with the same settings."""
        path = Path(self.earlier, row["shard"] or "-")
        if not self._is_sound(path):
            return None
        try:
            with tarfile.open(path) as tar:
                about, video = (tar.extractfile(f"{row['clip_id']}.{suffix}") for suffix in ("json", "mp4"))
                if about is None or video is None:
                    return None
                sample = json.load(about)
                encoding = sample["encoding"]
                if encoding["key"] != encoding_key(self.settings):
                    return None
                if self.settings.crop_bars and sample["letterbox"] != row["letterbox"]:
                    return None
                facts = {name: sample[name] for name in _FACTS}
                return Cut(video.read(), encoding["how"], facts, encoding["why"], reused=True)
        except (KeyError, TypeError, ValueError, tarfile.TarError):
            return None


class Cutters:
    """Child processes that cut clips, at most one for each thread; each starts when it is first needed."""

    def __init__(self, settings: ShardSettings, count: int) -> None:
        self._settings = settings
        # The last one that became free is taken first, so that no more start than work at a time.
        self._free: queue.LifoQueue[Isolated | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)

    def __call__(self, source: str, row: dict[str, Any]) -> Cut:
        """Cut one clip.

        Raises:
            VideoError: it cannot be cut; or its child crashed or showed no progress for ``stall_s`` seconds.
        """
        child = self._free.get()
        try:
            if child is None:
                started = Isolated(Cutter(self._settings), stall_s=self._settings.stall_s, memory_bytes=_MEMORY_BYTES)
                started.start()
                child = started
            cut: Cut = child.call(source, row)
            return cut
        finally:
            self._free.put(child)

    def close(self) -> None:
        while not self._free.empty():
            if (child := self._free.get()) is not None:
                child.close()


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


def _is_another(source: str, row: dict[str, Any]) -> bool:
    """Whether a file's content is not that of its row; one that was copied may only have another time."""
    size, mtime_ns = row["source_bytes"], row["source_mtime_ns"]
    if size is None or mtime_ns is None or not os.path.exists(source):  # whoever opens it says that it is gone
        return False
    found = os.stat(source)
    if found.st_size != size:
        return True
    return found.st_mtime_ns != mtime_ns and fingerprint(source) != row["video_id"]


def _refuse_a_part(row: dict[str, Any]) -> None:
    """A copied file would show more than the clip."""
    if row["source_frames"] is not None and row["source_frames"] != row["num_frames"]:
        raise VideoError(
            f"the clip is {row['num_frames']} of the {row['source_frames']} frames of its file, which `video: copy` "
            "would pack whole; use `video: remux` or `encode`"
        )


def _whole_file(source: str) -> bytes:
    if not source.lower().endswith(".mp4"):
        raise VideoError("is not an MP4 file and cannot be copied as it is; use `video: encode`")
    return Path(source).read_bytes()


def encoding_key(settings: ShardSettings) -> str:
    """Names everything besides the clip itself that decides the bytes of its video."""
    decides = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _DECIDES_NOTHING}
    if settings.video == "copy":
        decides = {"video": "copy"}
    else:  # a default that is written out decides the same
        decides.update(crf=crf_of(settings), preset=preset_of(settings))
    return hashlib.blake2b(json.dumps([VERSION, decides], sort_keys=True).encode(), digest_size=5).hexdigest()


def sample_json(row: dict[str, Any], settings: ShardSettings, cut: Cut | None = None) -> str:
    """The clip's row without bulky columns, bytes and what concerns only the table, as it stands in the shard.

    ``num_frames``, ``fps``, ``width``, ``height``, ``codec`` and ``has_audio`` are those of the MP4; ``encoding`` says
    how it was made. Without ``cut`` it is what decides the sample before anything is cut.
    """
    shown = {name: value for name, value in row.items() if name not in _NOT_IN_JSON and not isinstance(value, bytes)}
    about = {name: _finite(value) for name, value in shown.items()}
    encoding: dict[str, Any] = {"key": encoding_key(settings)}
    if cut is not None:
        about.update(cut.facts)
        encoding.update(how=cut.how, why=cut.why, fps=settings.fps)
    return json.dumps({**about, "encoding": encoding}, ensure_ascii=False, sort_keys=True)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value  # JSON has no NaN


def members(path: Path) -> Iterator[tuple[str, int]]:
    """(key, bytes of the video) of the samples in a shard."""
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.rpartition(".")
            if suffix == "mp4":
                yield key, member.size
