"""From the bytes of a sample to the frames of a span, at the size that covers the crop, cut and stacked.

Which decoder reads a clip is decided before, by ``decoder_for``; none is tried after another. Both let FFmpeg's scaler
make the picture as small as the crop allows, which is cheaper than converting all of it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import mmap
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from curation.errors import VideoError, one_line
from curation.isolate import alive
from shards.bytes import Bytes
from shards.probe import open_video
from training.data.assign import draws

_DECORD_READS = {"h264", "hevc", "vp9"}  # its FFmpeg knows no AV1
_SAME_TIME_S = 1e-4
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


class BadError(VideoError):
    """A sample cannot be used; ``reason`` is a word to count by."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def decoder_for(codec: str, how: str | None, asked: str) -> str:
    """The decoder of a clip: decord for what we encoded in H.264, HEVC or VP9; PyAV for the rest.

    decord is the fastest random reader of small clips, but knows no AV1, ignores edit lists and dies of damaged files.
    Clips that we encoded have no edit list. Copied packets (``how: remuxed`` or ``copied``) and strangers' may have.
    """
    if asked != "auto":
        return asked
    return "decord" if how == "encoded" and codec in _DECORD_READS else "pyav"


@dataclasses.dataclass
class Decoder:
    """Does jobs; lives in a child process. Never share one across processes."""

    def setup(self) -> None:
        self._bytes = Bytes()
        self._memory: tuple[tuple[str, int], mmap.mmap] | None = None

    def __call__(self, job: Job, memory: tuple[str, int] | None = None) -> Sample | Bad:
        """Do one job.

        Args:
            job: what to do.
            memory: a file, and its size, that the frames are put into; None returns them.
        """
        try:
            return self._do(job, memory)
        except BadError as error:
            return Bad(error.reason, str(error))
        except OSError as error:
            return Bad("unreadable", one_line(error))
        except Exception as error:  # whatever one file does, it costs one sample
            return Bad("undecodable", one_line(error))

    def _do(self, job: Job, memory: tuple[str, int] | None) -> Sample:
        data, text, row = self._members(job)
        alive()
        about: dict[str, Any] = json.loads(row) if row else {}
        caption = text.decode("utf-8", errors="replace") if job.text else str(about.get("caption") or "")
        chance = draws(*job.draw, job.key)
        scaled, crop = _cut(job, chance)
        read = _decord if job.decoder == "decord" else _pyav
        frames, times_s = read(data, job, scaled, chance[0])
        cut = frames[:, crop.top : crop.top + job.crop[0], crop.left : crop.left + job.crop[1]]  # T H W 3
        if crop.flipped:
            cut = cut[:, :, ::-1]
        video = cut.transpose(3, 0, 1, 2)
        if memory is None:
            return Sample(np.ascontiguousarray(video), caption, about, times_s, crop)
        np.copyto(np.frombuffer(self._mapped(memory), np.uint8, video.size).reshape(video.shape), video)
        return Sample(None, caption, about, times_s, crop)

    def _mapped(self, memory: tuple[str, int]) -> mmap.mmap:
        if self._memory is None or self._memory[0] != memory:
            with open(memory[0], "r+b") as file:
                self._memory = memory, mmap.mmap(file.fileno(), memory[1])
        return self._memory[1]

    def _members(self, job: Job) -> tuple[bytes, bytes, bytes]:
        """Video, text and row, in one read where they lie together, as they do in our shards."""
        asked = [job.video, job.text or (0, 0), job.row or (0, 0)]
        there = [(offset, size) for offset, size in asked if size]
        start, end = min(o for o, _ in there), max(o + s for o, s in there)
        if end - start > sum(size for _, size in there) + _GAP_BYTES:
            found = [self._bytes.read(job.url, *part) for part in asked]
        else:
            data = self._bytes.read(job.url, start, end - start)
            found = [data[offset - start : offset - start + size] if size else b"" for offset, size in asked]
        if any(len(part) != size for part, (_, size) in zip(found, asked, strict=True)):
            raise BadError("unreadable", "the shard is shorter than when its catalogue was made")
        return found[0], found[1], found[2]


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


def choose(
    times_s: np.ndarray, length_s: float, frames: int, fps: float | None, chance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames a span shows, and when: indices int64 T and seconds float64 T.

    Args:
        times_s: when the clip's frames are shown, from its first; ascending.
        length_s: when the last one ends.
        frames: how many are wanted.
        fps: how many a second, each what is on the screen at its time; None takes consecutive ones.
        chance: in [0, 1): where among all possible first frames the span starts.

    Raises:
        BadError: the clip is too short.
    """
    count = len(times_s)
    if fps is None:
        starts = count - frames + 1
        if starts < 1:
            raise BadError("short_clip", f"has {count} frames, not {frames} or more")
        first = int(chance * starts)
        return np.arange(first, first + frames), times_s[first : first + frames]
    last_s = length_s - (frames - 0.5) / fps + _SAME_TIME_S  # the last frame is shown half its time or more
    starts = int(np.searchsorted(times_s, last_s, side="right"))
    if starts < 1:
        raise BadError("short_clip", f"shows {length_s:.3f} s, not {frames} frames at {fps:g} a second")
    shown_s = times_s[int(chance * starts)] + np.arange(frames) / fps
    return np.searchsorted(times_s, shown_s + _SAME_TIME_S, side="right") - 1, shown_s


def _span(times_s: np.ndarray, job: Job, chance: float) -> tuple[np.ndarray, np.ndarray]:
    count = len(times_s)
    if job.num_frames is not None and count < job.num_frames:
        raise BadError("short_clip", f"has {count} frames, its row says {job.num_frames}")
    step_s = times_s[-1] / (count - 1) if count > 1 else job.length_s
    # A header may promise more than the file has; what is not there is not shown.
    length_s = job.length_s if job.num_frames is not None else min(job.length_s, times_s[-1] + step_s)
    return choose(times_s, max(length_s, times_s[-1]), job.frames, job.fps, chance)


def _decord(video: bytes, job: Job, scaled: tuple[int, int], chance: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames T H W 3 and their times, by decord."""
    import decord

    _refuse_other_size(video, job)
    reader = decord.VideoReader(io.BytesIO(video), ctx=decord.cpu(0), height=scaled[0], width=scaled[1], num_threads=1)
    alive()
    times_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(float)
    indices, shown_s = _span(times_s - times_s[0], job, chance)
    return reader.get_batch(indices).asnumpy(), shown_s


def _refuse_other_size(video: bytes, job: Job) -> None:
    """decord would squeeze any picture to the size asked for. FFmpeg's newer reader also refuses more damaged files."""
    with open_video(io.BytesIO(video)) as container:
        context = container.streams.video[0].codec_context
        found = context.height, context.width
    if found != job.size:
        said = f"{job.size[1]}x{job.size[0]}"
        raise BadError("wrong_size", f"is {found[1]}x{found[0]}, its row says {said}")


def _pyav(video: bytes, job: Job, scaled: tuple[int, int], chance: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames T H W 3 and their times, by PyAV: upright, without what an edit list hides, tone-mapped if need be."""
    from curation.source import is_seekable

    with open_video(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        # Files without times of their own (AVI) have their frames counted.
        counted = not is_seekable(container)
        names, times_s = _counted(container, stream) if counted else _timed(container, stream)
        indices, shown_s = _span(times_s, job, chance)
        wanted = {int(names[i]) for i in indices}
        found: dict[int, np.ndarray] = {}
        for start in {int(names[0]) if counted else min(wanted): None, int(names[0]): None}:
            container.seek(start, stream=stream)
            found = _pictures(container.decode(stream), counted, wanted, job, scaled)
            if len(found) == len(wanted):
                break  # else its index of keyframes lies, and it is read from the start
    if missing := len(wanted) - len(found):
        raise BadError("undecodable", f"{missing} of {len(wanted)} frames could not be decoded")
    return np.stack([found[int(names[i])] for i in indices]), shown_s


def _timed(container: Any, stream: Any) -> tuple[np.ndarray, np.ndarray]:
    """The frames' ticks and seconds, by their packets: nothing is decoded for it."""
    shown = {packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard}
    if None in shown or not shown:
        raise BadError("undecodable", "has frames without a time")
    ticks = np.array(sorted(shown), np.int64)
    return ticks, (ticks - ticks[0]) * float(stream.time_base)


def _counted(container: Any, stream: Any) -> tuple[np.ndarray, np.ndarray]:
    """The frames' numbers, and seconds by the file's rate: everything is decoded for it."""
    count = 0
    for _ in container.decode(stream):
        alive()
        count += 1
    if not count or not stream.average_rate:
        raise BadError("undecodable", "has no frames, or no rate")
    return np.arange(count), np.arange(count) / float(stream.average_rate)


def _pictures(
    frames: Iterable[Any], counted: bool, wanted: set[int], job: Job, scaled: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Number or ticks -> picture H W 3, RGB, of the frames that are wanted."""
    from curation.picture import Frame

    found: dict[int, np.ndarray] = {}
    scalers: dict[Any, Any] = {}
    for i, raw in enumerate(frames):
        alive()
        name = i if counted else raw.pts
        if name in wanted:
            turned = int(raw.rotation) % 360
            frame = Frame(0, 0.0, raw, 0 if turned % 90 else turned, scalers)
            if not found:
                _refuse_other_shape(raw, frame.rotation, job)
            found[name] = frame.picture(scaled[1], scaled[0])[..., ::-1]
        if len(found) == len(wanted):
            break
    return found


def _refuse_other_shape(raw: Any, rotation: int, job: Job) -> None:
    turned = rotation in (90, 270)
    height, width = (raw.width, raw.height) if turned else (raw.height, raw.width)
    if height > 1.5 * job.size[0] or job.size[0] > 1.5 * height:  # pixels that are not square differ in width alone
        said = f"{job.size[1]}x{job.size[0]}"
        raise BadError("wrong_size", f"is {width}x{height}, its row says {said}")
