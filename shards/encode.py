"""Cutting one clip out of its source: frame-exact, with settings that make the output reproducible."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from curation.errors import UsageError, VideoError
from curation.isolate import alive
from curation.picture import Frame
from curation.plan import ShardSettings
from curation.video import Video
from shards.audio import soundtrack
from shards.codecs import CODECS, encoder_options, misfit
from shards.mux import Movie
from shards.picture import Painter, Span, progressive
from shards.remux import CannotCopyError, remux_clip

VERSION = 2  # raise it when the same settings would give other bytes
_CLOCK = 90000  # ticks per second of the timestamps of clips that keep their frames' own times
_SAME_TIME_S = 1e-6
# Rates that people round when they write them: frames per second over 1.001.
_NTSC = [Fraction(1000 * n, 1001) for n in (24, 30, 48, 60, 120)]


class Cut(NamedTuple):
    """A clip as it goes into a shard."""

    mp4: bytes
    how: str  # encoded | remuxed | copied
    facts: dict[str, Any]  # what the MP4 holds: num_frames, fps, width, height (as displayed), codec, has_audio
    why: str = ""  # it is encoded, although packets were to be copied
    reused: bool = False  # it was made earlier

    @property
    def by(self) -> str:
        """What was done for it now; names the counter that it raises."""
        return "reused" if self.reused else self.how


class Shown(NamedTuple):
    """A frame of the clip with its time and how long it is shown, in ticks."""

    frame: Frame
    pts: int
    duration: int


@dataclasses.dataclass
class Cutter:
    """Cuts clips; lives in a child process, because sources are strangers' files."""

    settings: ShardSettings

    def setup(self) -> None:
        os.environ.setdefault("SVT_LOG", "1")  # else SVT-AV1 tells about itself on every clip
        if wrong := misfit(self.settings):
            raise UsageError(f"shards: {wrong[0]}: {wrong[1]}")

    def __call__(self, source: str, row: dict[str, Any]) -> Cut:
        return cut_clip(source, row, self.settings)


def cut_clip(source: str, row: dict[str, Any], settings: ShardSettings, *, threads: int = 1) -> Cut:
    """Cut one clip out of its source, as MP4: every frame of the span exactly once, counted from the clip's start.

    Args:
        source: path of the source video.
        row: the clip's row, with ``start_s``, ``end_s``, ``num_frames``, ``fps`` and, to crop, ``letterbox``.
        settings: with ``video: remux`` packets are copied where that gives exactly the clip's frames.
        threads: decoder threads; encoders always use one, because their output depends on their number.

    Raises:
        VideoError: the source cannot be read, or does not give the frames that the row promises.
    """
    with tempfile.TemporaryDirectory(prefix="cutroom-") as folder:
        target, why = os.path.join(folder, "clip.mp4"), ""
        try:
            if settings.video == "remux":
                try:
                    facts = remux_clip(source, row, settings, target, threads=threads)
                    return Cut(_read(target), "remuxed", facts)
                except CannotCopyError as reason:
                    why = str(reason)
            facts = _encode_clip(source, row, settings, target, threads)
            return Cut(_read(target), "encoded", facts, why)
        except FFmpegError as error:
            raise VideoError(f"encoding failed: {error}") from error


def _encode_clip(
    source: str, row: dict[str, Any], settings: ShardSettings, target: str, threads: int
) -> dict[str, Any]:
    start_s, end_s, promised = row["start_s"], row["end_s"], row["num_frames"]
    with Video(source, threads=threads, seek=row.get("seekable") is not False) as video:
        span = Span(video, start_s, end_s)
        frames = progressive(span)
        first = next(frames, None)
        if first is None:
            raise VideoError(f"the source gave no frame from {start_s:.3f} to {end_s:.3f} s, not {promised}")
        frames = itertools.chain([first], frames)
        rate = exact_rate(settings.fps) if settings.fps else Fraction(row["fps"]).limit_denominator(1001)
        shown = resampled(frames, start_s, end_s, rate) if settings.fps else as_is(frames, start_s, end_s)
        bars = row.get("letterbox") if settings.crop_bars else None
        painter = Painter(first, span.aspect, settings.short_side_px, bars)
        keep = settings.audio == "keep"
        sound = soundtrack(source, span.origin_s, start_s, end_s) if keep else contextlib.nullcontext()
        with sound as track, Movie(target) as movie:
            stream = movie.output.add_stream(
                CODECS[settings.codec].encoder, rate=rate, options=encoder_options(settings, rate)
            )
            assert isinstance(stream, VideoStream)
            _describe(stream, painter, settings, 1 / rate if settings.fps else Fraction(1, _CLOCK))
            movie.add_sound(track)
            num_frames = movie.mux(_packets(stream, shown, painter))
    if span.num_frames != promised:
        raise VideoError(
            f"the source gave {span.num_frames} frames from {start_s:.3f} to {end_s:.3f} s, not {promised}"
        )
    return {
        "num_frames": num_frames,
        "fps": float(rate) if settings.fps else row["fps"],
        "width": painter.width,
        "height": painter.height,
        "codec": settings.codec,
        "has_audio": movie.has_audio,
    }


def _describe(stream: VideoStream, painter: Painter, settings: ShardSettings, time_base: Fraction) -> None:
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = painter.width, painter.height, "yuv420p"
    context.time_base = time_base
    context.thread_count = 1
    painter.tags.write(context)
    if tag := CODECS[settings.codec].tag:
        context.codec_tag = tag


def _packets(stream: VideoStream, shown: Iterable[Shown], painter: Painter) -> Iterator[Packet]:
    """Encode; each packet says how long its picture is shown, so that the last one ends where the clip does."""
    durations: dict[int | None, int] = {}
    last: Frame | None = None
    picture: VideoFrame | None = None
    for frame, pts, duration in shown:
        if picture is None or frame is not last:
            picture, last = painter(frame), frame
        picture.pts, picture.time_base = pts, stream.codec_context.time_base
        durations[pts] = duration
        for packet in stream.encode_lazy(picture):
            packet.duration = durations.pop(packet.pts)
            yield packet
        alive()
    for packet in stream.encode_lazy(None):
        packet.duration = durations.pop(packet.pts)
        alive()
        yield packet


def as_is(frames: Iterable[Frame], start_s: float, end_s: float) -> Iterator[Shown]:
    """Every frame at its own time, in ticks of 1/90000 s."""
    before: tuple[Frame, int] | None = None
    for frame in frames:
        pts = round((frame.t_s - start_s) * _CLOCK)
        if before is not None:
            pts = max(pts, before[1] + 1)
            yield Shown(*before, pts - before[1])
        before = frame, pts
    if before is not None:
        yield Shown(*before, max(1, round((end_s - start_s) * _CLOCK) - before[1]))


def resampled(frames: Iterable[Frame], start_s: float, end_s: float, rate: Fraction) -> Iterator[Shown]:
    """``round(duration × rate)`` frames, at least one, each what is on the screen at its time; in ticks of 1/rate s."""
    count = max(1, round((end_s - start_s) * float(rate)))
    made, current = 0, None
    for frame in frames:
        while current is not None and made < count and start_s + made / float(rate) < frame.t_s - _SAME_TIME_S:
            yield Shown(current, made, 1)
            made += 1
        current = frame
    for i in range(made, count if current is not None else 0):
        assert current is not None
        yield Shown(current, i, 1)


def exact_rate(fps: float) -> Fraction:
    """The rate that is meant: 23.976 is 24000/1001."""
    return next((rate for rate in _NTSC if abs(fps - rate) < 0.005), Fraction(fps).limit_denominator(1001))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
