"""Looking at a stranger's video inside a shard: its header, or how many frames it shows. Runs in a child process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from curation.errors import VideoError, one_line
from curation.isolate import Isolated, alive
from shards.bytes import Bytes, RangeFile
from shards.container import open_video
from shards.scan import Facts

T = TypeVar("T")

_STALL_S, _MEMORY_BYTES = 60.0, 6 << 30  # the decoder of one clip


@dataclasses.dataclass
class Prober(Generic[T]):
    """What the child does."""

    look: Callable[[RangeFile], T]

    def setup(self) -> None:
        self._bytes = Bytes()

    def __call__(self, url: str, offset: int, size: int) -> T:
        return self.look(RangeFile(self._bytes, url, offset, size))


class Probing(Generic[T]):
    """A child process that looks at videos, which starts when the first is asked for and ends with the ``with`` block.

    Args:
        look: what it does with each; ``facts_of`` or ``count_frames``.
    """

    def __init__(self, look: Callable[[RangeFile], T]) -> None:
        self._look = look

    def __enter__(self) -> Callable[[str, int, int], T]:
        self._child: Isolated | None = None
        return self._probe

    def __exit__(self, *_: Any) -> None:
        if self._child is not None:
            self._child.close()

    def _probe(self, url: str, offset: int, size: int) -> T:
        if self._child is None:
            child = Isolated(Prober(self._look), stall_s=_STALL_S, memory_bytes=_MEMORY_BYTES)
            child.start()
            self._child = child
        found: T = self._child.call(url, offset, size)
        return found


def count_frames(file: RangeFile) -> int:
    """How many frames a video shows, counted as decoding counts them: damaged packets are skipped.

    Raises:
        VideoError: it shows none.
    """
    from curation.source import moving_pictures
    from curation.video import raw_frames

    num_bytes, losses, count = file.seek(0, os.SEEK_END), list[str](), 0
    file.seek(0)
    with open_video(file) as container:
        stream = moving_pictures(container)
        if stream is None:
            raise VideoError("has no video stream")
        for _ in raw_frames(container, stream, num_bytes, losses):
            alive()
            count += 1
    if count == 0:
        raise VideoError("no frame could be decoded" + (f" ({losses[0]})" if losses else ""))
    return count


def facts_of(file: RangeFile) -> Facts | str:
    """What a video is, or why its header does not tell.

    Raises:
        OSError: the header cannot be read, which says nothing of the video.
        MemoryError: it takes too much memory.
    """
    from av.error import FFmpegError

    try:
        return read_header(file)
    except Exception as error:  # of a stranger's file
        if isinstance(error, OSError | MemoryError) and not isinstance(error, FFmpegError):
            raise
        return one_line(error)


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
