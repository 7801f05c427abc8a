"""The header of a stranger's video inside a shard: how many frames, how large, how fast. Runs in a child process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from curation.errors import VideoError
from curation.isolate import Isolated
from shards.bytes import Bytes, RangeFile
from shards.scan import Facts

if TYPE_CHECKING:
    from av.container import InputContainer

_STALL_S = 60.0
_OPTIONS = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "none"}


@dataclasses.dataclass
class Prober:
    """What the child does."""

    def setup(self) -> None:
        self._bytes = Bytes()

    def __call__(self, url: str, offset: int, size: int) -> Facts:
        return read_header(RangeFile(self._bytes, url, offset, size))


class Probing:
    """A child process for headers, which starts when the first is asked for and ends with the ``with`` block."""

    def __enter__(self) -> Callable[[str, int, int], Facts]:
        self._child: Isolated | None = None
        return self._probe

    def __exit__(self, *_: Any) -> None:
        if self._child is not None:
            self._child.close()

    def _probe(self, url: str, offset: int, size: int) -> Facts:
        if self._child is None:
            child = Isolated(Prober(), stall_s=_STALL_S)
            child.start()
            self._child = child
        facts: Facts = self._child.call(url, offset, size)
        return facts


def open_video(file: Any, *, quick: bool = False) -> InputContainer:
    """Open a video that lies in memory or in a tar, in one of the formats of ``VIDEO_SUFFIXES``.

    A playlist that calls itself a video would make FFmpeg read any file or address that it names.

    Args:
        file: bytes that can be sought.
        quick: look at no picture. FFmpeg decodes the first ones when it opens a file (20 ms at 720p, and this takes
            0.6 ms); but streams that do not say how far their frames are out of order may lose some without that.
    """
    import av

    streams: Any = [{"skip_frame": "all"}] if quick else []
    return av.open(file, "r", metadata_errors="replace", options=_OPTIONS, stream_options=streams)


def read_header(file: RangeFile) -> Facts:
    """What a video is, by its header and its first frame, which knows its rotation.

    Raises:
        VideoError: it holds no video, or does not say how long it is.
    """
    import av

    with open_video(file) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise VideoError("has no video stream")
        frame = next(container.decode(stream), None)
        if frame is None:
            raise VideoError("no frame could be decoded")
        rate = stream.average_rate or stream.guessed_rate
        length_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        if length_s is None and container.duration:
            length_s = container.duration / av.time_base
        if not rate or not (stream.frames or length_s):
            raise VideoError("does not say how many frames it has")
        # An edit list hides frames that are counted, and then the length tells better.
        by_length = round(float(length_s * rate)) if length_s else stream.frames
        count = min(stream.frames, by_length) if stream.frames else by_length
        width, height = frame.width, frame.height
        aspect = stream.codec_context.sample_aspect_ratio
        if aspect and 1 / 16 <= aspect <= 16:
            width = max(1, round(width * aspect))
        if int(frame.rotation) % 180:
            width, height = height, width
        return Facts(max(1, count), float(rate), width, height, stream.codec_context.codec.canonical_name)
