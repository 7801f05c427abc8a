"""Reading a span of a clip's frames with PyAV or decord: which frames it shows, and their pictures, scaled.

Measured on 854x480 and 1280x720 clips of ours, 17 frames to 256 lines, CPU time: decord takes 1.7 times as long as PyAV
does here. What makes the difference: FFmpeg decodes the first pictures when a file is opened, to learn what it
is, unless it is told to skip them; of the frames between the keyframe and the span, those that no other frame needs are
left out; and pictures are made as small as the crop allows before they are converted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from curation.errors import VideoError
from curation.isolate import alive
from shards.container import open_video

_SAME_TIME_S = 1e-4


class Wanted(NamedTuple):
    """A span, as it is asked of a decoder."""

    frames: int
    fps: float | None
    chance: float  # in [0, 1): where among all possible first frames it starts
    size: tuple[int, int]  # (height, width) as the catalogue says, upright
    scaled: tuple[int, int]  # (height, width) of the pictures
    num_frames: int | None  # as the clip's row says; None where only the video's header does
    length_s: float


class Span(NamedTuple):
    """Pictures H W 3 uint8, BGR, and when each is shown, float64 T, in seconds from the clip's first frame."""

    pictures: list[np.ndarray]
    times_s: np.ndarray


class BadError(VideoError):
    """A sample cannot be used; ``reason`` is a word to count by."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


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
    if fps is None:
        starts = len(times_s) - frames + 1
        if starts < 1:
            raise BadError("short_clip", f"has {len(times_s)} frames, not {frames} or more")
        first = int(chance * starts)
        return np.arange(first, first + frames), times_s[first : first + frames]
    last_s = length_s - (frames - 0.5) / fps + _SAME_TIME_S  # the last frame is shown half its time or more
    starts = int(np.searchsorted(times_s, last_s, side="right"))
    if starts < 1:
        raise BadError("short_clip", f"shows {length_s:.3f} s, not {frames} frames at {fps:g} a second")
    shown_s = times_s[int(chance * starts)] + np.arange(frames) / fps
    return np.searchsorted(times_s, shown_s + _SAME_TIME_S, side="right") - 1, shown_s


def read_pyav(video: bytes, wanted: Wanted) -> Span:
    """A span by PyAV: upright, without what an edit list hides, tone-mapped and made progressive if need be.

    Raises:
        BadError: it cannot be read.
    """
    # A stream that does not say how its frames are ordered may lose some unless its first ones are looked at.
    span = _read_pyav(video, wanted, quick=True)
    return span if span is not None else _thorough(video, wanted)


def _thorough(video: bytes, wanted: Wanted) -> Span:
    span = _read_pyav(video, wanted, quick=False)
    if span is None:
        raise BadError("undecodable", "not all of the span's frames could be decoded")
    return span


def _read_pyav(video: bytes, wanted: Wanted, *, quick: bool) -> Span | None:
    """A span; None if frames of it did not come. Not ``quick``: everything from the start is decoded."""
    from curation.source import is_indexed

    with open_video(io.BytesIO(video), quick=quick) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        # Files without times of their own (AVI) have their frames counted.
        counted = not is_indexed(container)
        if counted and quick:
            return None
        names, times_s = _counted(container, stream) if counted else _timed(container, stream)
        indices, shown_s = _span(times_s, wanted)
        asked = [int(names[i]) for i in indices]
        container.seek(asked[0] if quick else 0 if counted else int(names[0]), stream=stream)
        frames = _from(container, stream, asked[0]) if quick else container.decode(stream)
        found = _pictures(frames, counted, set(asked), wanted, stream)
        return Span([found[name] for name in asked], shown_s) if len(found) == len(set(asked)) else None


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


def _from(container: Any, stream: Any, first: int) -> Iterator[Any]:
    """Decode on; before ``first`` only what other frames need."""
    context = stream.codec_context
    # In HEVC, frames that their own layer does not need may be needed by another.
    leaves_out = context.codec.canonical_name == "h264"
    for packet in container.demux(stream):
        early = leaves_out and packet.pts is not None and packet.pts < first
        context.skip_frame = "NONREF" if early else "DEFAULT"
        yield from packet.decode()


def _pictures(
    frames: Iterable[Any], counted: bool, asked: set[int], wanted: Wanted, stream: Any
) -> dict[int, np.ndarray]:
    """Number or ticks -> picture, of the frames that are asked for."""
    from curation.picture import Frame

    found: dict[int, np.ndarray] = {}
    scalers: dict[Any, Any] = {}
    for i, raw in enumerate(frames):
        alive()
        if raw.is_corrupt:  # what is predicted from it is wrong too, and not marked
            raise BadError("undecodable", "holds damaged frames")
        name = i if counted else raw.pts
        if name in asked:
            turned = int(raw.rotation) % 360
            frame = Frame(0, 0.0, raw, 0 if turned % 90 else turned, scalers)
            if not found:
                aspect = float(stream.codec_context.sample_aspect_ratio or 1)
                _refuse_other_size(raw.height, raw.width, aspect, wanted, sideways=frame.rotation in (90, 270))
            found[name] = frame.picture(wanted.scaled[1], wanted.scaled[0])
        if len(found) == len(asked):
            break
    return found


def read_decord(video: bytes, wanted: Wanted) -> Span:
    """A span by decord, for our own clips: it ignores edit lists, and dies of some damaged files.

    Raises:
        BadError: it cannot be read.
    """
    import decord

    with open_video(io.BytesIO(video), quick=True) as container:  # decord would squeeze any picture to the size
        context = container.streams.video[0].codec_context
        _refuse_other_size(context.height, context.width, 1.0, wanted)
    height, width = wanted.scaled
    reader = decord.VideoReader(io.BytesIO(video), ctx=decord.cpu(0), height=height, width=width, num_threads=1)
    alive()
    times_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(float)
    indices, shown_s = _span(times_s - times_s[0], wanted)
    rgb = reader.get_batch(indices).asnumpy()  # T H W 3
    return Span([np.ascontiguousarray(picture[..., ::-1]) for picture in rgb], shown_s)


def _span(times_s: np.ndarray, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    count = len(times_s)
    if wanted.num_frames is not None and count < wanted.num_frames:
        raise BadError("short_clip", f"has {count} frames, its row says {wanted.num_frames}")
    step_s = times_s[-1] / (count - 1) if count > 1 else wanted.length_s
    # A header may promise more than the file has; what is not there is not shown.
    length_s = wanted.length_s if wanted.num_frames is not None else min(wanted.length_s, times_s[-1] + step_s)
    return choose(times_s, max(length_s, times_s[-1]), wanted.frames, wanted.fps, wanted.chance)


def _refuse_other_size(height: int, width: int, aspect: float, wanted: Wanted, *, sideways: bool = False) -> None:
    """A picture that is not what its row says would be squeezed. ``aspect`` is a stored pixel's width, in heights."""
    sizes = {(height, width), (height, round(width * aspect))}
    if sideways:
        sizes = {(wide, tall) for tall, wide in sizes}
    said_height, said_width = wanted.size
    if not any(tall == said_height and abs(wide - said_width) <= 1 for tall, wide in sizes):
        tall, wide = min(sizes)
        raise BadError("wrong_size", f"is {wide}x{tall}, its row says {said_width}x{said_height}")
