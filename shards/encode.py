"""Cutting one clip out of its source: frame-exact re-encoding with settings that make the output reproducible."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType, VideoFrame

from curation.errors import VideoError
from curation.plan import ShardSettings
from curation.video import Frame, Video

VERSION = 1  # raise it when the same settings would give other bytes
_CLOCK = 90000  # ticks per second of the clip's timestamps
_SAME_TIME_S = 1e-6


def encode_clip(source: str, row: dict[str, Any], settings: ShardSettings, *, threads: int = 1) -> bytes:
    """Decode one clip from its source and encode it as H.264 in MP4: upright, square pixels, no audio.

    Every frame of the span is in the result exactly once, at its own presentation time counted from the clip's start.

    Args:
        source: path of the source video.
        row: the clip's row, with ``start_s``, ``end_s`` and ``num_frames``.
        settings: encoder settings.
        threads: decoder threads; the encoder always uses one, because its output depends on their number.

    Raises:
        VideoError: the source cannot be read, or does not give the frames that the row promises.
    """
    start_s, end_s, promised = row["start_s"], row["end_s"], row["num_frames"]
    rate = Fraction(row["fps"]).limit_denominator(1001)
    with tempfile.TemporaryDirectory(prefix="cutroom-") as folder:
        target = os.path.join(folder, "clip.mp4")
        with Video(source, threads=threads) as video:
            written = _encode(span(video, start_s, end_s), start_s, rate, video, settings, target)
        if written != promised:
            raise VideoError(f"the source gave {written} frames from {start_s:.3f} to {end_s:.3f} s, not {promised}")
        with open(target, "rb") as file:
            return file.read()


def span(video: Video, start_s: float, end_s: float) -> Iterator[Frame]:
    """The frames with start_s <= t < end_s."""
    for frame in video.frames(start_s):
        if frame.t_s >= end_s - _SAME_TIME_S:
            break
        if frame.t_s >= start_s - _SAME_TIME_S:
            yield frame


def _encode(
    frames: Iterator[Frame], start_s: float, rate: Fraction, video: Video, settings: ShardSettings, target: str
) -> int:
    stream, written = None, 0
    try:
        # bitexact leaves out the version of the muxer, faststart lets training read a clip from its first bytes.
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(target, "w", format="mp4", options=options) as output:
            for frame in frames:
                if stream is None:
                    width, height = output_size(video.width, video.height, settings.short_side_px)
                    stream = output.add_stream("libx264", rate=rate, options=_options(settings, rate))
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    stream.codec_context.time_base = Fraction(1, _CLOCK)
                    stream.codec_context.thread_count = 1
                upright = _upright(frame, width, height)
                upright.pts = round((frame.t_s - start_s) * _CLOCK)
                upright.time_base = Fraction(1, _CLOCK)
                output.mux(stream.encode(upright))
                written += 1
            if stream is not None:
                output.mux(stream.encode(None))
    except FFmpegError as error:
        raise VideoError(f"encoding failed: {error}") from error
    return written


def _options(settings: ShardSettings, rate: Fraction) -> dict[str, str]:
    return {
        "crf": str(settings.crf),
        "preset": settings.preset,
        "g": str(max(1, round(settings.gop_s * rate))),
        "flags": "+bitexact",
        # Without it x264's assembly gives other bits in about one run of ten, and on other CPUs.
        "x264-params": "cpu-independent=1",
    }


def output_size(width: int, height: int, short_side_px: int | None) -> tuple[int, int]:
    """The encoded size: scaled down so that the short side is ``short_side_px``, and even, as H.264 demands."""
    scale = min(1.0, short_side_px / min(width, height)) if short_side_px else 1.0
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def _upright(frame: Frame, width: int, height: int) -> VideoFrame:
    """The frame in yuv420p, scaled to the displayed size and rotated upright."""
    turned = frame.rotation in (90, 270)
    stored = frame.convert(height if turned else width, width if turned else height, "yuv420p")
    stored.pict_type = PictureType.NONE
    if not frame.rotation:
        return stored
    planes = [
        np.rot90(_plane(stored, i), frame.rotation // 90).copy()  # rot90 turns counter-clockwise, as rotation counts
        for i in range(3)
    ]
    upright = VideoFrame(width, height, "yuv420p")
    upright.color_range, upright.colorspace = stored.color_range, stored.colorspace
    for plane, pixels in zip(upright.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = pixels
        plane.update(padded.tobytes())
    return upright


def _plane(frame: VideoFrame, i: int) -> np.ndarray:
    plane = frame.planes[i]
    rows = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]
