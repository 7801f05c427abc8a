"""From the bytes of a sample to its frames, caption and row: the work of the loader's children."""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curation.errors import one_line
from curation.isolate import alive
from shards.bytes import Bytes
from training.data.chance import draws
from training.data.spans import BadError, Wanted, read_decord, read_pyav

if TYPE_CHECKING:  # the children need not wait for what these import
    from shards.read import Catalogue
    from training.data.settings import DataSettings

_GAP_BYTES = 1 << 16  # members nearer to each other than this are read in one request


class Job(NamedTuple):
    """One span of one sample, as it is asked of a worker."""

    url: str
    key: str
    video: tuple[int, int]  # offset, bytes
    text: tuple[int, int] | None
    row: tuple[int, int] | None
    decoder: str  # decord | pyav
    size: tuple[int, int]  # (height, width) as the catalogue says, upright
    num_frames: int | None  # as the clip's row says; None where only the video's header does
    length_s: float
    frames: int
    fps: float | None
    crop: tuple[int, int]  # (height, width)
    draw: tuple[int, int, str]  # seed, epoch, purpose: what chance depends on besides the key
    settings: tuple[str, float, float]  # crop, zoom, flip

    @property
    def shape(self) -> tuple[int, ...]:
        """3 T H W."""
        return 3, self.frames, *self.crop


class Crop(NamedTuple):
    """What was cut out of the upright picture, after it was scaled to ``height`` x ``width``."""

    height: int
    width: int
    top: int
    left: int
    flipped: bool


class Sample(NamedTuple):
    """What a worker makes of a job."""

    video: np.ndarray | None  # 3 T H W uint8 RGB; None: it lies in the memory that was given for it
    caption: str
    row: dict[str, Any]
    times_s: np.ndarray  # float64 T, presentation seconds in the clip at which the frames are shown
    crop: Crop


class Bad(NamedTuple):
    """Why a job could not be done."""

    reason: str
    why: str


def job_of(
    catalogue: Catalogue,
    number: int,
    settings: DataSettings,
    *,
    frames: int,
    fps: float | None,
    crop: tuple[int, int],
    draw: tuple[int, int, str],
    key: str | None = None,
) -> Job:
    """The job for row ``number`` of a catalogue.

    Args:
        key: what chance depends on, in place of the sample's own key; then neither caption nor row is read.
    """
    row = {name: catalogue.table[name][number].as_py() for name in catalogue.table.column_names}
    text, about = ((row[f"{part}_offset"], row[f"{part}_bytes"]) for part in ("text", "json"))
    return Job(
        url=catalogue.shards[row["shard"]].url,
        key=key or row["key"],
        video=(row["video_offset"], row["video_bytes"]),
        text=None if key or row["text_offset"] is None else text,
        row=None if key or row["json_offset"] is None else about,
        decoder=decoder_for(settings.decoder),
        size=(row["height"], row["width"]),
        num_frames=None if row["how"] is None else row["num_frames"],
        length_s=row["num_frames"] / row["fps"],
        frames=frames,
        fps=fps,
        crop=crop,
        draw=draw,
        settings=(settings.crop, settings.zoom, settings.flip),
    )


def decoder_for(asked: str) -> str:
    """The decoder that ``auto`` means: PyAV, which is the faster one here and reads every codec; see ``spans``.

    None is tried after another, so that a clip is never read by two decoders whose pixels differ.
    """
    return "pyav" if asked == "auto" else asked


@dataclasses.dataclass
class Decoder:
    """Does jobs; lives in a child process. Never share one across processes."""

    def setup(self) -> None:
        self._bytes = Bytes()
        self._memory: tuple[tuple[str, int], mmap.mmap] | None = None

    def __call__(self, jobs: Sequence[Job], memory: tuple[str, int] | None = None) -> list[Sample | Bad]:
        """Do jobs of one shape.

        Args:
            jobs: what to do.
            memory: a file, and its size, that the frames are put into, one sample after the other; None returns them.
        """
        places: list[np.ndarray | None] = [None] * len(jobs)
        if memory is not None:
            places = list(self._mapped(memory, (len(jobs), *jobs[0].shape)))
        return [self.do(job, place) for job, place in zip(jobs, places, strict=True)]

    def do(self, job: Job, place: np.ndarray | None) -> Sample | Bad:
        """Do one job; whatever is wrong with its sample is told, and not raised."""
        try:
            return self._do(job, place)
        except BadError as error:
            return Bad(error.reason, str(error))
        except Exception as error:  # whatever one file does, it costs one sample
            return Bad("undecodable", one_line(error))

    def _do(self, job: Job, place: np.ndarray | None) -> Sample:
        alive()
        data, text, row = self._members(job)
        alive()
        about: dict[str, Any] = json.loads(row) if row else {}
        caption = text.decode("utf-8", errors="replace") if job.text else str(about.get("caption") or "")
        chance = draws(*job.draw, job.key)
        scaled, crop = _cut(job, chance)
        read = read_decord if job.decoder == "decord" else read_pyav
        wanted = Wanted(job.frames, job.fps, float(chance[0]), job.size, scaled, job.num_frames, job.length_s)
        span = read(data, wanted)
        video = np.empty(job.shape, np.uint8) if place is None else place
        _assemble(span.pictures, crop, video)
        return Sample(video if place is None else None, caption, about, span.times_s, crop)

    def _mapped(self, memory: tuple[str, int], shape: tuple[int, ...]) -> np.ndarray:
        if self._memory is None or self._memory[0] != memory:
            with open(memory[0], "r+b") as file:
                self._memory = memory, mmap.mmap(file.fileno(), memory[1])
        return np.frombuffer(self._memory[1], np.uint8, math.prod(shape)).reshape(shape)

    def _members(self, job: Job) -> tuple[bytes, bytes, bytes]:
        """Video, text and row, in one read where they lie together, as they do in our shards."""
        asked = [job.video, job.text or (0, 0), job.row or (0, 0)]
        there = [(offset, size) for offset, size in asked if size]
        start, end = min(o for o, _ in there), max(o + s for o, s in there)
        if end - start > sum(size for _, size in there) + _GAP_BYTES:
            found = [self._read(job.url, *part) for part in asked]
        else:
            data = self._read(job.url, start, end - start)
            found = [data[offset - start : offset - start + size] if size else b"" for offset, size in asked]
        if any(len(part) != size for part, (_, size) in zip(found, asked, strict=True)):
            raise BadError("unreadable", "the shard is shorter than when its catalogue was made")
        return found[0], found[1], found[2]

    def _read(self, url: str, offset: int, size: int) -> bytes:
        try:
            return self._bytes.read(url, offset, size)
        except OSError as error:
            raise BadError("unreadable", one_line(error)) from error


def _assemble(pictures: list[np.ndarray], crop: Crop, video: np.ndarray) -> None:
    """Put the crop of each picture H W 3 (BGR) into ``video`` 3 T H W (RGB)."""
    import cv2

    height, width = video.shape[2:]
    for t, picture in enumerate(pictures):
        cut = picture[crop.top : crop.top + height, crop.left : crop.left + width]
        for channel, plane in enumerate(reversed(cv2.split(cut))):
            video[channel, t] = plane[:, ::-1] if crop.flipped else plane


def _cut(job: Job, chance: np.ndarray) -> tuple[tuple[int, int], Crop]:
    """The size (height, width) that the picture is scaled to, and what is cut out of it."""
    (height, width), (tall, wide), (how, most, flip) = job.size, job.crop, job.settings
    cover = max(tall / height, wide / width)
    scale = cover * min(most, max(1.0, 1 / cover)) ** chance[4]  # up to the clip's own size, and no further
    scaled = max(tall, round(height * scale)), max(wide, round(width * scale))
    top, left = (chance[1], chance[2]) if how == "random" else (0.5, 0.5)
    crop = Crop(*scaled, int(top * (scaled[0] - tall + 1)), int(left * (scaled[1] - wide + 1)), bool(chance[3] < flip))
    if how == "center":
        crop = crop._replace(top=(scaled[0] - tall) // 2, left=(scaled[1] - wide) // 2)
    return scaled, crop
