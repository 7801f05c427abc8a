"""Films whose frame numbers can be read from their pixels, in every shape that makes cutting hard."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np

from curation.video import Video

BITS, SQUARE = 12, 32
WIDTH, HEIGHT = BITS * SQUARE, 64


def numbered(i: int) -> np.ndarray:
    """A picture that says ``i``: twelve black or white squares, one per bit. H W 3."""
    bits = np.array([235 if i >> k & 1 else 16 for k in range(BITS)], np.uint8)
    return np.dstack([np.repeat(np.repeat(bits, SQUARE)[None], HEIGHT, axis=0)] * 3)


def numbers(video: Path | bytes) -> list[int]:
    """The frame numbers that a video shows, in order, as a player shows them."""
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
        shown = [np.rot90(f.to_ndarray(format="gray"), f.rotation // 90) for f in container.decode(video=0)]
    return [read_number(picture) for picture in shown]


def read_number(picture: np.ndarray) -> int:
    """The number in a grey picture of any size."""
    height, width = picture.shape
    return sum(int(picture[height // 2, int((k + 0.5) * width / BITS)] > 127) << k for k in range(BITS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """How a numbered film is made.

    Args:
        ticks: presentation time of frame i, in units of ``time_base``; None is i frames of ``fps``.
        rotation: degrees, counter-clockwise, by which a player turns it.
        hidden: frames at the start that an edit list keeps from being shown.
    """

    suffix: str = ".mp4"
    codec: str = "libx264"
    fps: Fraction = Fraction(24)
    count: int = 60
    options: dict[str, str] = dataclasses.field(default_factory=lambda: {"g": "12", "bf": "3"})
    ticks: Callable[[int], int] | None = None
    time_base: Fraction | None = None
    rotation: int = 0
    hidden: int = 0
    muxer: dict[str, str] = dataclasses.field(default_factory=dict)
    paint: Callable[[int], np.ndarray] = numbered

    def write(self, path: Path) -> Path:
        time_base = self.time_base or 1 / self.fps
        # Without the option the muxer would move what is hidden into view.
        hiding = {"avoid_negative_ts": "disabled"} if self.hidden else {}
        with av.open(str(path), "w", options={**self.muxer, **hiding}) as out:
            stream: Any = out.add_stream(self.codec, rate=self.fps, options=self.options)
            turned = self.rotation in (90, 270)
            height, width = self.paint(0).shape[:2]
            stream.width, stream.height = (height, width) if turned else (width, height)
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", time_base
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            for i in range(self.count):
                picture = np.ascontiguousarray(np.rot90(self.paint(i), -self.rotation // 90))
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = (self.ticks(i) if self.ticks else i) - self.hidden, time_base
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return path


def _uneven(i: int) -> int:
    """Milliseconds: 20, 33, 50 and 120 in turn."""
    return (i // 4) * 223 + (0, 20, 53, 103)[i % 4]


_MS = Fraction(1, 1000)
FILMS = {
    "constant": Film(),
    "without_b_frames": Film(options={"g": "12", "bf": "0"}),
    "23.976_fps": Film(fps=Fraction(24000, 1001)),
    "59.94_fps": Film(fps=Fraction(60000, 1001), options={"g": "250"}),
    "variable": Film(fps=Fraction(1000), ticks=_uneven, time_base=_MS),
    "variable_matroska": Film(suffix=".mkv", fps=Fraction(25), ticks=_uneven, time_base=_MS),
    "open_gop": Film(options={"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "open_gop_hevc": Film(codec="libx265", options={"x265-params": "open-gop=1:keyint=12:min-keyint=12:log-level=0"}),
    "starts_at_10_s": Film(suffix=".mkv", ticks=lambda i: 10000 + round(i * 1000 / 24), time_base=_MS),
    "edit_list_and_negative_times": Film(hidden=17),
    "shown_before_decoded": Film(muxer={"movflags": "+negative_cts_offsets"}),
    "rotated": Film(rotation=90),
    "upside_down": Film(rotation=180),
    "transport_stream": Film(suffix=".ts", time_base=Fraction(1, 90000), ticks=lambda i: 126000 + i * 3750),
    "vp9": Film(suffix=".webm", codec="libvpx-vp9", options={"g": "12", "cpu-used": "8", "deadline": "realtime"}),
    "av1": Film(codec="libsvtav1", options={"g": "12", "preset": "8", "svtav1-params": "lp=1"}),
    "mpeg2": Film(suffix=".mpg", codec="mpeg2video", fps=Fraction(25), options={"g": "12", "bf": "2", "b": "4000000"}),
}


def times_of(path: Path) -> list[float]:
    """When each frame is shown, in seconds from the first; and when the last one ends."""
    with Video(path) as video:
        return [*[frame.t_s for frame in video.frames()], video.end_s]


def span(times: list[float], start: int, end: int) -> dict[str, Any]:
    """The row of a clip that holds the frames ``start`` to ``end`` (exclusive)."""
    length_s = times[end] - times[start]
    return {
        "clip_id": f"{start}-{end}",
        "start_s": times[start],
        "end_s": times[end],
        "num_frames": end - start,
        "fps": (end - start) / length_s,
    }


def interlaced(path: Path) -> Path:
    """A film of a bar that moves between the two fields of each frame."""
    with av.open(str(path), "w") as out:
        options = {"flags": "+ilme+ildct", "x264-params": "tff=1", "crf": "10"}
        stream: Any = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(20):
            picture = np.full((240, 320, 3), 40, np.uint8)
            picture[0::2, 16 * i % 200 : 16 * i % 200 + 80] = 200
            picture[1::2, 16 * i % 200 + 8 : 16 * i % 200 + 88] = 200
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def greys(video: Path | IO[bytes]) -> list[np.ndarray]:
    """The stored pictures of a film, H W."""
    with av.open(video if not isinstance(video, Path) else str(video)) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


def combing(picture: np.ndarray) -> float:
    """How much the lines of a picture H W alternate, against how much every second line differs."""
    p = picture.astype(float)
    return float(np.abs(np.diff(p, axis=0)).mean() - np.abs(p[2:] - p[:-2]).mean())
