"""Copies of clips for measuring how duplicates are found: real and painted takes, and what people do to videos.

Pictures are H W 3 BGR uint8, times presentation seconds from the start of the clip.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from benchmarks.scenes import make_take
from curation.config import load_plan
from curation.decode import Decode, decode_video
from curation.plan import Step
from curation.video import Video

SIZE = (480, 270)  # of painted takes, and the longest side of real ones
FPS = 24
CLIP_S = 4.0
_SHORTEST_S = 2.0
_PER_VIDEO = 2
# Broken files, one that is black, and others that show the same as one of these.
_LEFT_OUT = ("broken_", "black_", "bbb_tree_hevc", "bbb_tree_vp9", "carphone_distorted", "cosmos_", "nasa_13013_vfr")
_TICK = Fraction(1, 1000)


@dataclasses.dataclass(frozen=True)
class Film:
    """Pictures with their times, and how to encode them."""

    pictures: list[np.ndarray]
    times: np.ndarray
    codec: str = "libx264"
    crf: int = 18

    def between(self, start: float, end: float) -> Film:
        """The part from one share of its length to another."""
        length = self.times[-1] + np.median(np.diff(self.times))
        inside = np.flatnonzero((self.times >= start * length - 1e-6) & (self.times < end * length - 1e-6))
        times = self.times[inside]
        return dataclasses.replace(self, pictures=[self.pictures[i] for i in inside], times=times - times[0])

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> Film:
        return dataclasses.replace(self, pictures=[np.ascontiguousarray(change(p)) for p in self.pictures])


@dataclasses.dataclass(frozen=True)
class Source:
    """A clip, and what the same shot shows after it."""

    name: str
    clip: Film
    after: Film


def real_sources(videos: Path) -> Iterator[Source]:
    """All that the videos of a folder give."""
    for path, start_s, middle_s, end_s in _spans(videos):
        film = _read(path, start_s, end_s)
        share = (middle_s - start_s) / (end_s - start_s)
        yield Source(f"{path.stem}@{start_s:.1f}", film.between(0, share), film.between(share, 1))


def painted_sources() -> Iterator[Source]:
    """As many as one wants."""
    for seed in itertools.count():
        random = np.random.default_rng([7, seed])
        take = make_take(random, SIZE, count=int(2 * CLIP_S * FPS), fps=FPS)
        film = Film([take.frame(i) for i in range(len(take))], np.arange(len(take)) / FPS)
        yield Source(f"painted {seed}", film.between(0, 0.5), film.between(0.5, 1))


def _spans(videos: Path) -> Iterator[tuple[Path, float, float, float]]:
    """Clips of real videos that are followed by another one of the same shot: start, end, end of the next one."""
    stage = Decode(max_clip_s=CLIP_S)
    for path in sorted(videos.iterdir()):
        if path.suffix in (".csv", ".md") or path.name.startswith(_LEFT_OUT):
            continue
        plan = load_plan("as_is")
        row = {"video": path.name, "video_id": path.name}
        clips = decode_video(str(path), row, Step(stage, plan.decode.mark, {}), [], False).clips.to_pylist()
        pairs = [
            (path, clip["start_s"], clip["end_s"], after["end_s"])
            for clip, after in itertools.pairwise(clips)
            if clip["end_s"] == after["start_s"]
            and min(clip["duration_s"], after["duration_s"]) >= _SHORTEST_S
            and min(clip["num_frames"], after["num_frames"]) >= 2 * _SHORTEST_S
            and abs(clip["duration_s"] - after["duration_s"]) < 0.5
        ]
        yield from pairs[:: max(2, len(pairs) // _PER_VIDEO)][:_PER_VIDEO]  # what comes after one is not the other


def _read(path: Path, start_s: float, end_s: float) -> Film:
    pictures: list[np.ndarray] = []
    times: list[float] = []
    with Video(path) as video:
        for frame in video.frames(start_s):
            if frame.t_s >= end_s:
                break
            if frame.t_s >= start_s and (not times or frame.t_s - times[-1] >= 0.9 / FPS):
                width, height = video.size(SIZE[0])
                pictures.append(frame.picture(width + width % 2, height + height % 2))
                times.append(frame.t_s)
    return Film(pictures, np.array(times) - times[0])


def _resized(width: int, height: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))


def reencoded(film: Film, random: np.random.Generator) -> Film:
    return dataclasses.replace(film, codec=str(random.choice(["libx264", "libvpx-vp9"])), crf=38)


def scaled(film: Film, random: np.random.Generator) -> Film:
    factor = random.choice([0.35, 0.5, 1.5])
    height, width = film.pictures[0].shape[:2]
    return film.each(_resized(_even(width * factor), _even(height * factor)))


def slower(film: Film, random: np.random.Generator) -> Film:
    """Frames dropped or shown again for another rate: 10, 15 or 30 a second."""
    fps = random.choice([10, 15, 30])
    times = np.arange(0, film.times[-1], 1 / fps)
    shown = np.searchsorted(film.times, times + 1e-6, side="right") - 1
    return dataclasses.replace(film, pictures=[film.pictures[i] for i in shown], times=times)


def trimmed(film: Film, random: np.random.Generator) -> Film:
    """A tenth less, off the beginning, the end or both."""
    start = random.choice([0.0, 0.05, 0.1])
    return film.between(start, start + 0.9)


def cropped(film: Film, random: np.random.Generator) -> Film:
    """A twentieth less of the width and of the height."""
    height, width = film.pictures[0].shape[:2]
    across, down = _even(0.95 * width), _even(0.95 * height)
    left, top = int(random.integers(0, width - across + 1)), int(random.integers(0, height - down + 1))
    return film.each(lambda picture: picture[top : top + down, left : left + across])


def brightened(film: Film, random: np.random.Generator) -> Film:
    gain, lift = [(1.25, 10), (0.75, 0), (0.8, 40)][int(random.integers(3))]
    return film.each(lambda picture: cv2.convertScaleAbs(picture, alpha=gain, beta=lift))


def with_logo(film: Film, random: np.random.Generator) -> Film:
    height, width = film.pictures[0].shape[:2]
    across, down = int(0.16 * width), int(0.09 * height)
    left, top = [int(0.04 * width), int(0.8 * width)][random.integers(2)], int(height * random.choice([0.05, 0.86]))
    colour = tuple(random.integers(0, 256, 3).tolist())

    def draw(picture: np.ndarray) -> np.ndarray:
        picture = picture.copy()
        cv2.rectangle(picture, (left, top), (left + across, top + down), colour, -1)
        at = (left + across // 8, top + down * 3 // 4)
        cv2.putText(picture, "LIVE", at, cv2.FONT_HERSHEY_DUPLEX, down / 32, (255,) * 3, 1, cv2.LINE_AA)
        return picture

    return film.each(draw)


def mirrored(film: Film, random: np.random.Generator) -> Film:
    return film.each(lambda picture: picture[:, ::-1])


def backwards(film: Film, random: np.random.Generator) -> Film:
    return dataclasses.replace(film, pictures=film.pictures[::-1], times=(film.times[-1] - film.times)[::-1])


def all_at_once(film: Film, random: np.random.Generator) -> Film:
    for change in (trimmed, slower, cropped, brightened, with_logo, scaled, reencoded):
        film = change(film, random)
    return film


Change = Callable[[Film, np.random.Generator], Film]
COPIES: dict[str, Change] = {
    "re-encoded": reencoded,
    "scaled": scaled,
    "other frame rate": slower,
    "10% trimmed": trimmed,
    "5% cropped": cropped,
    "brightness": brightened,
    "logo": with_logo,
    "mirrored": mirrored,
    "all but mirrored": all_at_once,
}


def variants(source: Source, random: np.random.Generator) -> Iterator[tuple[str, Film]]:
    """The clip itself, its copies, and two that are none: the clip ``reversed``, and the ``next clip``."""
    yield "original", source.clip
    for name, change in COPIES.items():
        yield name, change(source.clip, random)
    yield "reversed", backwards(source.clip, random)
    yield "next clip", source.after


def write(path: Path, film: Film) -> None:
    """Encode a film, each picture at its time."""
    height, width = film.pictures[0].shape[:2]
    speed = {"preset": "veryfast"} if film.codec == "libx264" else {"deadline": "realtime", "cpu-used": "8"}
    with av.open(str(path), "w") as out:
        stream = cast(VideoStream, out.add_stream(film.codec, rate=FPS, options={**speed, "crf": str(film.crf)}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = _TICK
        if film.codec != "libx264":
            stream.bit_rate = 0
        for picture, t_s in zip(film.pictures, film.times, strict=True):
            frame = VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = round(t_s / _TICK), _TICK
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
