"""Cutting a clip by copying its packets: without loss, where the result shows exactly the clip's frames."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from curation.colour import is_hdr
from curation.errors import CutroomError, VideoError
from curation.isolate import alive
from curation.picture import Frame
from curation.plan import ShardSettings
from curation.source import is_indexed, moving_pictures, open_source
from curation.video import Video
from shards.audio import soundtrack
from shards.mux import Movie
from shards.picture import Span, displayed_size, output_size

_CODECS = {"h264", "hevc", "vp9", "av1"}  # what MP4 holds and loaders read
_SAME_TIME_S = 1e-4


class CannotCopyError(CutroomError):
    """Copied packets would not be this clip; the message says why."""


@dataclasses.dataclass
class _Clip:
    """What a copy must show: the clip's frames as the source shows them."""

    pts: list[int]  # on the stream's clock
    end: int  # when the last one ends, on the same clock
    times_s: list[float]  # counted from the clip's start
    pictures: list[int]  # checksums
    rotation: int
    size: tuple[int, int]  # (width, height) as displayed
    codec: str
    origin_s: float


def remux_clip(
    source: str, row: dict[str, Any], settings: ShardSettings, target: str, *, threads: int
) -> dict[str, Any]:
    """Copy a clip's packets into an MP4 file and prove by decoding it that it shows the clip, frame for frame.

    Returns:
        What the MP4 holds, as in ``Cut.facts``. Rotation and pixel aspect stay metadata; the size is as displayed.

    Raises:
        CannotCopyError: the clip has to be encoded.
        VideoError: the source cannot be read, or does not give the frames that the row promises.
    """
    if row.get("seekable") is False:
        raise CannotCopyError("its timestamps had to be mended")
    if settings.crop_bars and row.get("letterbox"):
        raise CannotCopyError("its bars are cut off")
    clip = _look(source, row, settings, threads)
    with contextlib.ExitStack() as open_files:
        container = open_files.enter_context(open_source(source))
        if not is_indexed(container):
            raise CannotCopyError(f"packets of {container.format.long_name} are not copied into MP4")
        stream = moving_pictures(container)
        assert stream is not None  # _look read it
        packets = _find(container, stream, clip)
        keep = settings.audio == "keep"
        sound = soundtrack(source, clip.origin_s, row["start_s"], row["end_s"]) if keep else contextlib.nullcontext()
        track = open_files.enter_context(sound)
        try:
            with Movie(target) as movie:
                copy = movie.output.add_stream_from_template(stream, opaque=True)
                copy.time_base = stream.time_base
                if clip.codec == "hevc":
                    copy.codec_context.codec_tag = "hvc1"  # as for encoded clips
                movie.add_sound(track)
                for packet in packets:
                    packet.stream = copy
                movie.mux(packets)
        except (FFmpegError, ValueError) as error:
            raise CannotCopyError(f"MP4 does not take the packets ({error})") from error
    _prove(target, clip, threads)
    return {
        "num_frames": len(clip.pts),
        "fps": row["fps"],
        "width": clip.size[0],
        "height": clip.size[1],
        "codec": clip.codec,
        "has_audio": movie.has_audio,
    }


def _look(source: str, row: dict[str, Any], settings: ShardSettings, threads: int) -> _Clip:
    """Decode the clip from its source."""
    with Video(source, threads=threads) as video:
        if video.codec not in _CODECS:
            raise CannotCopyError(f"{video.codec} is not copied into MP4")
        span = Span(video, row["start_s"], row["end_s"])
        pts: list[int] = []
        times_s, pictures, kinds, end, size = [], [], set(), 0, (0, 0)
        for frame in span:
            raw, size = frame.raw, displayed_size(frame, span.aspect)
            if why := _why_not(frame, size, settings):
                raise CannotCopyError(why)
            if raw.pts is None or not raw.time_base or (pts and raw.pts <= pts[-1]):
                raise CannotCopyError("there are frames without a time of their own")
            kinds.add((raw.width, raw.height, raw.format.name, frame.rotation))
            pts.append(raw.pts)
            times_s.append(frame.t_s - row["start_s"])
            pictures.append(checksum(raw))
            end = raw.pts + max(1, round((row["end_s"] - frame.t_s) / raw.time_base))
    if span.num_frames != row["num_frames"]:
        raise VideoError(
            f"the source gave {span.num_frames} frames from {row['start_s']:.3f} to {row['end_s']:.3f} s, "
            f"not {row['num_frames']}"
        )
    if len(kinds) > 1:
        raise CannotCopyError("the resolution changes within the clip")
    rotation = next(iter(kinds))[3]
    return _Clip(pts, end, times_s, pictures, rotation, size, video.codec, span.origin_s)


def _why_not(frame: Frame, size: tuple[int, int], settings: ShardSettings) -> str | None:
    """What would have to be done to a frame that only encoding can do."""
    if is_hdr(frame.raw):
        return "HDR is tone-mapped"
    if frame.raw.interlaced_frame:
        return "interlaced pictures are made whole"
    if settings.short_side_px and min(size) > settings.short_side_px:
        smaller = output_size(*size, settings.short_side_px)
        return f"{size[0]}x{size[1]} is scaled down to {smaller[0]}x{smaller[1]}"
    return None


def _find(container: av.container.InputContainer, stream: av.VideoStream, clip: _Clip) -> list[Packet]:
    """The clip's packets in decoding order, with times counted from the clip's start."""
    wanted = set(clip.pts)
    found: list[Packet] = []
    container.seek(clip.pts[0], stream=stream)
    for packet in container.demux(stream):
        alive()
        if not packet.size or (not found and packet.pts != clip.pts[0]):
            continue
        if not found and not packet.is_keyframe:
            raise CannotCopyError("the clip does not start on a keyframe")
        if packet.pts not in wanted:
            raise CannotCopyError("frames outside of the clip are needed to decode it")
        wanted.remove(packet.pts)
        found.append(packet)
        if not wanted:
            break
    if wanted:
        raise CannotCopyError("the clip's packets are not where its frames are")
    # Decoding times are made anew: not every container has them, and these are right for any order.
    order = sorted(range(len(found)), key=lambda i: found[i].pts or 0)
    delay = max(clip.pts[i] - (packet.pts or 0) for i, packet in enumerate(found))
    for (i, now), then in zip(zip(order, clip.pts, strict=True), [*clip.pts[1:], clip.end], strict=True):
        found[i].duration = then - now
    for i, packet in enumerate(found):
        packet.pts, packet.dts = (packet.pts or 0) - clip.pts[0], clip.pts[i] - delay - clip.pts[0]
    return found


def _prove(target: str, clip: _Clip, threads: int) -> None:
    """Decode the copy and compare it with what the source showed."""
    shown = []
    try:
        with Video(target, threads=threads) as copy:
            for frame in copy.frames():
                alive()
                shown.append(checksum(frame.raw))
                same_time = abs(frame.t_s - clip.times_s[len(shown) - 1]) < _SAME_TIME_S
                if not same_time or frame.rotation != clip.rotation:
                    raise CannotCopyError("the copy shows its frames at other times or turned")
            losses = copy.losses
    except (VideoError, IndexError) as error:
        raise CannotCopyError(f"the copy cannot be decoded ({error})") from error
    if shown != clip.pictures or losses:
        raise CannotCopyError("the copy shows other pictures: its first frames need what comes before them")


def checksum(frame: VideoFrame) -> int:
    """Of the picture's pixels, without the padding of its rows; for planar formats, which is what our codecs give."""
    total = 0
    for i, plane in enumerate(frame.planes):
        used = plane.width * (2 if frame.format.components[i].bits > 8 else 1)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, :used]
        total = zlib.crc32(rows.tobytes(), total)
    return total
