"""Footage made on the spot: short films of named shapes before painted backgrounds, with their truth beside them.

The demo curates it and the tests measure against it. Every film comes with ``name.json`` (captions per shot) and the
folder with ``truth.json`` (cuts, transitions, camera, text and bars of every film). The same seed gives the same
pictures.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from curation.files import aside
from curation.painting import COLOURS, Shape, barred, cut_out, paint, place, write

Camera = Literal["static", "pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out"]
Direction = Literal["left", "right", "up", "down"]

_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_PAN = {"pan_left": (-1, 0), "pan_right": (1, 0), "tilt_up": (0, -1), "tilt_down": (0, 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """One take. Speeds are in frame heights per second; a zoom's speed is its relative growth per second."""

    seconds: float = 2.0
    background: str = "green meadow"
    shape: Shape | None = "circle"
    colour: str = "red"
    direction: Direction = "right"
    speed: float = 0.2
    camera: Camera = "static"
    camera_speed: float = 0.0
    text: str | None = None

    @property
    def caption(self) -> str:
        """A true sentence about the shot."""
        what = f"A {self.colour} {self.shape}" if self.shape else "Nothing"
        does = f"moves {self.direction} across" if self.speed else "stands still before"
        words = [f"{what} {does} a {self.background}." if self.shape else f"A {self.background}, nothing moves."]
        if self.camera != "static":
            words.append(f"The camera {self.camera.replace('_', 's ', 1)}.")
        if self.text:
            words.append(f'Large letters say "{self.text}".')
        return " ".join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """A video file: shots joined by cuts, or by dissolves of ``dissolve_s``."""

    name: str
    shots: tuple[Shot, ...]
    fps: int = 24
    width: int = 640
    height: int = 360
    codec: Literal["libx264", "libvpx-vp9"] = "libx264"
    dissolve_s: float = 0.0
    bars: float = 0.0  # height of the letterbox bars above and below, as a share of the picture
    seed: int = 0


DEMO: tuple[Film, ...] = (
    Film(
        name="hard_cuts.mp4",
        shots=(
            Shot(colour="red", shape="circle", direction="right", background="green meadow"),
            Shot(colour="blue", shape="square", direction="left", background="desert", seconds=1.5),
            Shot(colour="yellow", shape="star", direction="up", background="blue sky"),
            Shot(colour="white", shape="triangle", direction="down", background="grey harbour", seconds=0.75),
        ),
    ),
    Film(
        name="dissolve.mp4",
        fps=25,
        dissolve_s=0.6,
        shots=(
            Shot(colour="purple", shape="circle", direction="left", background="desert", seconds=3.0),
            Shot(colour="orange", shape="square", direction="right", background="grey harbour", seconds=3.0),
        ),
    ),
    Film(
        name="pan.mp4",
        fps=30,
        shots=(Shot(camera="pan_right", camera_speed=0.25, colour="red", shape="star", direction="up", seconds=4.0),),
    ),
    Film(
        name="zoom.mp4",
        shots=(Shot(camera="zoom_in", camera_speed=0.12, colour="blue", background="desert", seconds=4.0, speed=0.1),),
    ),
    Film(name="still.mp4", fps=30, shots=(Shot(shape="triangle", colour="white", speed=0.0, seconds=4.0),)),
    Film(
        name="fast.mp4",
        shots=(Shot(camera="pan_left", camera_speed=4.5, background="blue sky", seconds=2.5, speed=0.8),),
    ),
    Film(
        name="large_text.mp4",
        fps=25,
        shots=(
            Shot(text="BREAKING NEWS", background="grey harbour", colour="yellow", seconds=3.0, speed=0.15),
            Shot(background="green meadow", colour="yellow", shape="square", direction="left", seconds=2.0),
        ),
    ),
    Film(
        name="letterbox.mp4",
        bars=0.22,
        shots=(Shot(background="desert", colour="purple", shape="square", direction="left", seconds=3.0),),
    ),
    Film(
        name="portrait.mp4",
        fps=30,
        width=360,
        height=640,
        shots=(Shot(background="blue sky", colour="orange", shape="star", direction="down", seconds=3.0),),
    ),
    Film(
        name="cuts_vp9.webm",
        codec="libvpx-vp9",
        fps=25,
        shots=(
            Shot(background="grey harbour", colour="red", shape="square", direction="up"),
            Shot(background="blue sky", colour="purple", shape="triangle", direction="right"),
        ),
    ),
    Film(
        name="tilt_vp9.webm",
        codec="libvpx-vp9",
        fps=30,
        shots=(Shot(camera="tilt_down", camera_speed=0.2, background="desert", colour="white", seconds=3.0),),
    ),
    Film(
        name="long_take.mp4",
        shots=(Shot(camera="pan_right", camera_speed=0.12, colour="blue", shape="star", seconds=12.0, speed=0.05),),
    ),
)


def make_footage(
    folder: str | os.PathLike[str], films: tuple[Film, ...] = DEMO, *, broken: bool = True
) -> dict[str, Any]:
    """Write films, their captions and ``truth.json`` into a folder; files that are there already stay.

    Args:
        folder: made if it does not exist.
        films: what to make.
        broken: add a film that was cut off while copying and a file of noise named like a video.

    Returns:
        The truth: file name -> its shots, transitions and geometry.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {film.name: truth(film) for film in films}
    for film in films:
        if not (folder / film.name).exists():
            write_film(folder / film.name, film)
        captions = [{key: shot[key] for key in ("start_s", "end_s", "text")} for shot in facts[film.name]["shots"]]
        (folder / film.name).with_suffix(".json").write_text(json.dumps({"captions": captions}, indent=1))
    if broken:
        whole = (folder / films[0].name).read_bytes()
        (folder / "broken_copy.mp4").write_bytes(whole[: int(len(whole) * 0.6)])
        noise = np.random.default_rng(1).integers(0, 256, 20_000, np.uint8).tobytes()
        (folder / "broken_noise.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + noise)
        facts |= {"broken_copy.mp4": {"broken": "cut off"}, "broken_noise.mp4": {"broken": "not a video"}}
    (folder / "truth.json").write_text(json.dumps(facts, indent=1))
    return facts


def truth(film: Film) -> dict[str, Any]:
    """Where the shots and transitions of a film lie. A frame of a dissolve belongs to no shot."""
    fade = round(film.dissolve_s * film.fps)
    shots, transitions, start = [], [], 0
    for i, shot in enumerate(film.shots):
        count = round(shot.seconds * film.fps)
        first = start + (fade if i else 0)
        end = start + count - (fade if i < len(film.shots) - 1 else 0)
        shots.append(
            {
                "start_frame": first,
                "end_frame": end,
                "start_s": first / film.fps,
                "end_s": end / film.fps,
                "text": shot.caption,
                "camera": shot.camera,
                "camera_speed": shot.camera_speed,
                "letters": shot.text,
                "still": shot.speed == 0 and shot.camera == "static",
            }
        )
        if i < len(film.shots) - 1:
            kind = "dissolve" if fade else "cut"
            transitions.append({"kind": kind, "start_frame": end, "end_frame": end + fade})
        start += count - fade
    size = {"fps": film.fps, "width": film.width, "height": film.height, "bars": film.bars}
    return {**size, "num_frames": start + fade, "shots": shots, "transitions": transitions}


def pictures(film: Film) -> Iterator[np.ndarray]:
    """The frames of a film, H W 3 RGB uint8."""
    fade = round(film.dissolve_s * film.fps)
    held: list[np.ndarray] = []  # the end of the shot before, waiting to be dissolved
    for i, shot in enumerate(film.shots):
        frames = list(_take(shot, film, seed=film.seed * 100 + i))
        for k, last in enumerate(held):
            weight = (k + 1) / (fade + 1)
            frames[k] = cv2.addWeighted(last, 1 - weight, frames[k], weight, 0)
        held = frames[len(frames) - fade :] if fade and i < len(film.shots) - 1 else []
        yield from (barred(frame, film.bars) for frame in frames[: len(frames) - len(held)])


def write_film(path: Path, film: Film) -> None:
    """Encode a film with PyAV."""
    fast = {"preset": "veryfast", "crf": "20"} if film.codec == "libx264" else {"deadline": "realtime", "cpu-used": "8"}
    container = "mp4" if path.suffix == ".mp4" else "webm"
    options = {"movflags": "faststart"} if container == "mp4" else {}
    with aside(path) as file, av.open(str(file), "w", format=container, options=options) as out:
        stream = out.add_stream(film.codec, rate=film.fps, options={**fast, "g": str(2 * film.fps)})
        stream.width, stream.height, stream.pix_fmt = film.width, film.height, "yuv420p"
        stream.bit_rate = 1_500_000 if film.codec == "libvpx-vp9" else 0
        for i, picture in enumerate(pictures(film)):
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, film.fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _take(shot: Shot, film: Film, seed: int) -> Iterator[np.ndarray]:
    """The frames of one shot: a window moves over a painted background, a shape moves within the window."""
    width, height, count = film.width, film.height, round(shot.seconds * film.fps)
    travel = shot.camera_speed * height * shot.seconds if shot.camera in _PAN else 0.0
    step = _PAN.get(shot.camera, (0, 0))
    world = paint(
        width + int(travel * abs(step[0])) + 2, height + int(travel * abs(step[1])) + 2, shot.background, seed
    )
    sprite = cut_out(shot.shape, COLOURS[shot.colour], height // 3) if shot.shape else None
    for i in range(count):
        t = i / film.fps
        moved = shot.camera_speed * height * t if shot.camera in _PAN else 0.0
        left = moved if step[0] > 0 else travel - moved if step[0] < 0 else 0.0
        top = moved if step[1] > 0 else travel - moved if step[1] < 0 else 0.0
        shift = np.array([[1, 0, left], [0, 1, top]], np.float64)
        frame = cv2.warpAffine(world, shift, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        if sprite is not None:
            dx, dy = _STEP[shot.direction]
            along = shot.speed * height * (t - shot.seconds / 2)
            frame = place(frame, sprite, width / 2 + dx * along, height / 2 + dy * along)
        if shot.camera in ("zoom_in", "zoom_out"):
            growth = (1 + shot.camera_speed) ** (t if shot.camera == "zoom_in" else shot.seconds - t)
            zoom = cv2.getRotationMatrix2D((width / 2, height / 2), 0, growth)
            frame = cv2.warpAffine(frame, zoom, (width, height), flags=cv2.INTER_LINEAR)
        if shot.text:
            frame = write(frame, shot.text)
        yield frame
