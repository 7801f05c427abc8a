"""The sound of one clip: decoded from its source, cut to the sample, encoded as AAC."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from curation.errors import VideoError
from curation.isolate import alive
from curation.source import is_seekable, open_source

_RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # in Hz; any other becomes the first
_BITS_PER_CHANNEL = 96000  # a second: no difference is heard
_RUN_UP_S = 1.0  # decoded and thrown away, because codecs need some packets to get into their stride
_DRIFT_S = 0.02  # timestamps that are off by less are the container's rounding; more is a gap or an overlap


@contextlib.contextmanager
def soundtrack(source: str, origin_s: float, start_s: float, end_s: float) -> Iterator[AudioStream | None]:
    """An AAC track of the first audio stream from ``start_s`` to ``end_s``, or None where there is no sound.

    Sound that begins late or pauses is silent there. Sound that is damaged within the span is left out altogether: what
    is not there teaches a model nothing wrong.

    Args:
        source: path of the source video.
        origin_s: the container's time of presentation second 0.
    """
    with tempfile.TemporaryDirectory(prefix="cutroom-") as folder:
        path = os.path.join(folder, "sound.mp4")
        try:
            _write(source, origin_s + start_s, end_s - start_s, path)
        except (VideoError, FFmpegError, ValueError):  # a clip without its sound is still a clip
            yield None
            return
        with av.open(path) as finished:
            yield finished.streams.audio[0]


def _write(source: str, start_s: float, length_s: float, path: str) -> None:
    """Write the track; ``start_s`` is in the container's time.

    Raises:
        VideoError, FFmpegError, ValueError: there is no sound, or it cannot be had whole.
    """
    with open_source(source) as container:
        if not container.streams.audio:
            raise VideoError("has no sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise VideoError("has sound that no decoder is known for")
        rate = stream.rate if stream.rate in _RATES else _RATES[0]
        layout = "mono" if stream.channels == 1 else "stereo"
    frames = _converted(_from(source, start_s), AudioResampler("fltp", layout, rate))
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        track = output.add_stream("aac", rate=rate, layout=layout, options={"flags": "+bitexact"})
        track.bit_rate = _BITS_PER_CHANNEL * track.channels
        written = 0
        for samples in _placed(frames, start_s, round(length_s * rate), rate, track.channels):
            frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
            output.mux(track.encode(frame))
            written += samples.shape[1]
        output.mux(track.encode(None))


def _from(source: str, start_s: float) -> Iterator[AudioFrame]:
    """Decode from somewhat before ``start_s``, or from the beginning where seeking leads elsewhere."""
    with open_source(source) as container:
        stream, first = container.streams.audio[0], None
        frames = _decoded(container, stream, start_s)
        if is_seekable(container) and stream.time_base:
            with contextlib.suppress(FFmpegError):
                container.seek(int((start_s - _RUN_UP_S) / stream.time_base), stream=stream)
                first = next(frames, None)
        if first is not None and first.time is not None and first.time <= start_s:
            yield first
            yield from frames
            return
    with open_source(source) as container:
        yield from _decoded(container, container.streams.audio[0], start_s)


def _decoded(container: InputContainer, stream: AudioStream, start_s: float) -> Iterator[AudioFrame]:
    for packet in container.demux(stream):
        alive()
        try:
            frames = packet.decode()
        except FFmpegError as error:
            if packet.pts is None or not packet.time_base or packet.pts * packet.time_base >= start_s:
                raise VideoError(f"sound cannot be decoded: {error}") from error
            continue  # a codec that was not in its stride yet
        yield from frames


def _converted(frames: Iterable[AudioFrame], resampler: AudioResampler) -> Iterator[tuple[float | None, np.ndarray]]:
    """(container time in seconds, samples as channels × time)."""
    for frame in frames:
        for piece in resampler.resample(frame):
            yield frame.time, piece.to_ndarray()


def _placed(
    pieces: Iterable[tuple[float | None, np.ndarray]], start_s: float, count: int, rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Exactly ``count`` samples from ``start_s`` on, in blocks of at most a second.

    Raises:
        VideoError: not one sample lies within.
    """
    done, at, heard = 0, 0, False
    for time_s, samples in pieces:
        expected = at if time_s is None else round((time_s - start_s) * rate)
        if abs(expected - at) > _DRIFT_S * rate or not heard:
            at = expected
        if at >= count:
            break
        yield from _silence(at - done, rate, channels)
        done = max(done, at)
        inside = samples[:, max(0, done - at) : max(0, count - at)]
        at += samples.shape[1]
        if inside.shape[1]:
            heard, done = True, min(count, at)
            yield np.ascontiguousarray(inside)
    if not heard:
        raise VideoError("no sound in this span")
    yield from _silence(count - done, rate, channels)


def _silence(count: int, rate: int, channels: int) -> Iterator[np.ndarray]:
    while count > 0:
        yield np.zeros((channels, min(count, rate)), np.float32)
        count -= rate
