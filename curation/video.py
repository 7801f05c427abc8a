"""Opening and decoding a source file with PyAV: upright pictures at the size asked for, in presentation time.

Time is counted in seconds from the first shown frame, taken from timestamps and never from index ÷ fps. The same frame
has the same time whether it was reached from the start or by seeking.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from curation.endings import cut_off
from curation.errors import VideoError, one_line
from curation.frames import scaled_size
from curation.picture import Frame
from curation.source import MOST_PIXELS, is_seekable, moving_pictures, open_source

_FALLBACK_FPS = 25.0
_WIDEST_PIXEL = 16  # a pixel aspect ratio beyond this, or its inverse, is a damaged header
# What timestamps are believed. Nobody looks at one frame for ten minutes, and no file plays 2000 frames a second.
_MOST_STEP_S, _LEAST_STEP_S = 600.0, 0.0005
_MOST_BACK_S = 1.0  # smaller disorder is mended in passing
_LEADS_S = (0.0, 2.0, 10.0)  # where there is no index, or a wrong one, seeking ends too late, or within a group
_MOST_S = 99_000.0  # 27.5 hours; the id of a clip has no room for more
_MOST_REPEATS, _MOST_REPEATED_BYTES = 10, 16 << 20  # data that may come out of a file again and again


class Video:
    """A source file, decoded front to back. Use as a context manager; never share one across processes.

    Args:
        path: where the file lies.
        threads: of the decoder.
        exact: False leaves out the deblocking of frames that no other frame is predicted from: a little blockier, and
            up to a sixth cheaper. No error can spread from them.
        seek: False reads from the start whatever is asked for, as a file needs whose timestamps had to be mended.

    Attributes:
        width, height: as displayed (rotation and pixel aspect ratio applied), known after the first frame.
        codec: the codec's name as FFmpeg gives it, such as ``h264``.
        losses: what could not be read, in words; empty for a sound file.

    Raises:
        VideoError: the file cannot be opened or holds no video stream.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 1, exact: bool = True, seek: bool = True
    ) -> None:
        self.path = os.fspath(path)
        self.losses: list[str] = []
        self.num_frames = 0
        self.end_s = 0.0  # end of the last frame shown so far
        self.width = self.height = self.rotation = 0
        self.aspect = Fraction(1)  # width of a stored pixel, in heights
        self._threads, self._exact, self._may_seek = threads, exact, seek
        self._scalers: dict[Any, VideoReformatter] = {}
        self._origin: int | None = None  # the timestamp of the first frame, in ticks
        self._tick = Fraction(0)  # seconds
        self._trust_timestamps()
        self._open()
        self.codec = str(self._stream.codec_context.codec.canonical_name)
        self.has_audio = bool(self._container.streams.audio)

    def _open(self) -> None:
        try:
            self._container = open_source(self.path)
        except av.error.ArgumentError as error:
            raise VideoError("cannot be opened (it is in no video format that is read)") from error
        except (FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"cannot be opened ({_reason(error)})") from error
        try:
            stream = moving_pictures(self._container)
            if stream is None:
                raise VideoError("has no video stream")
            self._stream = stream
            if self._stream.codec_context is None:
                raise VideoError("has a video stream that no decoder is known for")
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.thread_count = self._threads
            self._stream.codec_context.options = {
                "max_pixels": MOST_PIXELS,
                "skip_loop_filter": "default" if self._exact else "noref",
            }
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._container.close()

    def size(self, long_side_px: int | None) -> tuple[int, int]:
        """Displayed (width, height) scaled so that the longer side is ``long_side_px``; None leaves it as it is."""
        return (self.width, self.height) if long_side_px is None else scaled_size(self.width, self.height, long_side_px)

    @property
    def seekable(self) -> bool:
        """Whether frames have the same times after a seek, as far as the container's kind and what was read tell."""
        return self._may_seek and not self._num_mended and is_seekable(self._container)

    def declared_duration_s(self) -> float | None:
        """How long the file says its video is, or None. A claim: compare, never trust."""
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        with contextlib.suppress(KeyError, ValueError, OverflowError):
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            told_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
            return told_s if math.isfinite(told_s) else None
        if container.duration and not self.has_audio:
            return float(container.duration) / av.time_base
        return None

    def frames(self, start_s: float = 0.0) -> Iterator[Frame]:
        """Decode from the start, or from a keyframe at or before ``start_s`` where the container allows it.

        Damaged packets are skipped and noted in ``losses``.

        Raises:
            VideoError: not one frame could be decoded.
        """
        if start_s > 0 and self.seekable:
            for lead_s in _LEADS_S:
                if not self._seek(max(0.0, start_s - lead_s)):
                    break
                first = True
                for frame in self._decode(sought=True):
                    if first and frame.t_s > start_s:
                        break
                    first = False
                    yield frame
                if not first:
                    return
            self._container.close()
            self._open()
        yield from self._decode()
        if self.num_frames == 0:
            raise VideoError("no frame could be decoded" + (f" ({self.losses[0]})" if self.losses else ""))

    def _seek(self, start_s: float) -> bool:
        if self._origin is None:
            next(self._decode(), None)
        if self._origin is None or self._stream.time_base is None:
            return False
        try:
            target_s = self._origin * self._tick + Fraction(start_s)
            self._container.seek(int(target_s / self._stream.time_base), stream=self._stream)
        except FFmpegError:
            return False
        return True

    def _decode(self, *, sought: bool = False) -> Iterator[Frame]:
        """Decode onward from the current position; from the first whole picture on, if that was ``sought``."""
        self.num_frames = damaged = 0
        self._trust_timestamps()
        try:
            for raw, t_s, step_s in self._timed(self._raw_frames(sought=sought)):
                damaged += bool(raw.is_corrupt)
                if t_s > _MOST_S:
                    self.losses.append(f"reading stopped at {_MOST_S / 3600:g} hours")
                    break
                self.end_s = t_s + self._shown_for(raw.duration, step_s)
                self.num_frames += 1
                yield Frame(self.num_frames - 1, t_s, raw, self.rotation, self._scalers)
            with contextlib.suppress(OSError):
                self.losses += filter(None, [cut_off(self.path)])
        finally:  # also where nobody reads on
            if damaged:
                self.losses.append(f"{damaged} damaged frames")
            if self._num_jumps:
                jumps = f"{self._num_jumps} jumps of more than {_MOST_STEP_S:g} s"
                self.losses.append(f"{jumps} in the timestamps left out")
            if self._num_back:
                self.losses.append(f"timestamps go back, {self._num_back} times; what follows is shown after the rest")

    def _raw_frames(self, *, sought: bool) -> Iterator[VideoFrame]:
        size = os.path.getsize(self.path)
        return raw_frames(self._container, self._stream, size, self.losses, sought=sought)

    def _look(self, raw: VideoFrame) -> None:
        """Learn geometry and origin from the film's first frame, which knows them better than the header."""
        if self.width:
            return
        self.rotation = int(raw.rotation) % 360
        if self.rotation % 90:
            self.rotation = 0
        aspect = self._stream.codec_context.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, _WIDEST_PIXEL) <= aspect <= _WIDEST_PIXEL:
            aspect = Fraction(1)
        self.aspect = aspect
        width, height = max(1, round(raw.width * aspect)), raw.height
        self.width, self.height = (height, width) if self.rotation in (90, 270) else (width, height)
        if self._origin is None and raw.pts is not None and raw.time_base:
            self._origin, self._tick = raw.pts, raw.time_base

    def _trust_timestamps(self) -> None:
        self._left_out_s = 0.0  # jumps in the timestamps that were not believed; negative where they went back
        self._num_mended = self._num_jumps = self._num_back = 0

    def _timed(self, raws: Iterator[VideoFrame]) -> Iterator[tuple[VideoFrame, float, float]]:
        """Frames with the time at which each is shown, and the length of an ordinary step there, in seconds."""
        last_s, step_s = None, 1.0 / self._nominal_fps()
        raw = next(raws, None)
        while raw is not None:
            self._look(raw)
            after = None
            t_s = self._time(raw.pts, last_s, step_s)
            if last_s is not None and t_s <= last_s + _LEAST_STEP_S:
                after = next(raws, None)
                t_s = self._between(t_s, last_s, None if after is None else after.pts, step_s)
            elif last_s is not None:
                step_s = t_s - last_s
            yield raw, t_s, step_s
            last_s, raw = t_s, after or next(raws, None)

    def _time(self, pts: int | None, last_s: float | None, step_s: float) -> float:
        """When a frame is shown by its timestamp. A jump ahead that no film makes counts as one ordinary step."""
        if pts is None or self._origin is None:
            self._num_mended += 1
            return 0.0 if last_s is None else last_s + min(step_s, 1.0 / self._nominal_fps())
        told_s = self._seconds(pts - self._origin)
        if last_s is None:
            return told_s
        if self._left_out_s and _LEAST_STEP_S < told_s - last_s <= _MOST_STEP_S:
            self._left_out_s = 0.0  # only single frames were out of order
        t_s = told_s - self._left_out_s
        if t_s <= last_s + _MOST_STEP_S:
            return t_s
        self._num_mended += 1
        self._num_jumps += 1
        self._left_out_s = told_s - last_s - step_s
        return last_s + step_s

    def _between(self, t_s: float, last_s: float, next_pts: int | None, step_s: float) -> float:
        """When a frame is shown whose timestamp is not after the last one's: before the next frame, if that one's is.

        Then the timestamp was the only wrong one; else the clock was set back.
        """
        self._num_mended += 1
        self._num_back += t_s < last_s - _MOST_BACK_S
        if next_pts is not None and self._origin is not None:
            next_s = self._seconds(next_pts - self._origin) - self._left_out_s
            if next_s > last_s + 2 * _LEAST_STEP_S:
                return last_s + min(step_s, (next_s - last_s) / 2)
        ordinary_s = min(step_s, 1.0 / self._nominal_fps())
        self._left_out_s += t_s - last_s - ordinary_s
        return last_s + ordinary_s

    def _shown_for(self, ticks: int | None, step_s: float) -> float:
        shown_s = self._seconds(ticks) if ticks else 0.0
        # Containers with a millisecond clock (FLV) declare one tick; no frame is shown that short.
        return shown_s if 0.002 < shown_s <= _MOST_STEP_S else step_s

    def _seconds(self, ticks: int) -> float:
        # As exact as with fractions, and much faster.
        return ticks * self._tick.numerator / self._tick.denominator

    def _nominal_fps(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate and 0 < rate <= 1000 else _FALLBACK_FPS


def raw_frames(
    container: InputContainer, stream: VideoStream, num_bytes: int, losses: list[str], *, sought: bool = False
) -> Iterator[VideoFrame]:
    """Decode onward from the current position of a file of ``num_bytes``.

    If that was ``sought``, all before the first whole picture is left out. Damaged packets are skipped; what could not
    be read is added to ``losses``.
    """
    skipped, reason, size = 0, "", 0
    most = _MOST_REPEATS * num_bytes + _MOST_REPEATED_BYTES
    packets = container.demux(stream)
    try:
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (FFmpegError, ValueError) as error:
                losses.append(f"reading stopped: {_reason(error)}")
                break
            size += packet.size
            if size > most:  # an edit list that repeats itself, or a file that grows as fast as it is read
                losses.append(f"reading stopped: more than {most} bytes came out of it")
                break
            try:
                frames = packet.decode()
            except FFmpegError as error:
                if not sought:
                    skipped, reason = skipped + 1, _reason(error)
                continue
            for raw in frames:
                sought = sought and not _is_whole(raw)
                if not sought:
                    yield raw
    finally:
        if skipped:
            losses.append(f"{skipped} undecodable packets ({reason})")


def _is_whole(raw: VideoFrame) -> bool:
    """Whether the picture was decoded without others, as the first one after a seek must be."""
    return raw.key_frame or raw.pict_type == PictureType.I


def _reason(error: BaseException) -> str:
    strerror: Any = getattr(error, "strerror", None)
    return str(strerror) if strerror else one_line(error)
