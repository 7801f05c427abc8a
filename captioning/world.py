"""A generated world to learn captions in: clips of one moving shape, with contact sheets and true captions.

The same seed gives the same clips. ``make_world`` writes the tables of a run directly, with true captions;
``write_films`` encodes video files, for what is to go through a run.

Every clip has a shape, a colour, a direction, a background, a camera and perhaps letters, each drawn by itself. The
picture is a torus: what leaves at one side comes in at the other. So wherever the shape is in a frame, it is there
equally often for every direction, and no single frame gives the direction away.

In the ``simple`` world the camera stands still, nothing is written, and shapes set out from near the middle: there a
model learns to make videos within minutes. (In the other, noise that hides the direction hides the shape's place too,
so that the word for the direction tells a denoiser next to nothing.)

Shapes have one of six colours, or of more, up to twelve: the more colours a shape was seen in, the better can a model
tell the shape from the colour, and put together two that it never saw together.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
from av.video.frame import VideoFrame

from curation.files import aside
from curation.painting import BACKGROUNDS, COLOURS, paint
from curation.table import CAPTIONS, CLIPS, FRAMES, VIDEOS, Part, Store, conform, extend

SHAPES = ("circle", "bar", "cross", "ring")
TONES = {  # RGB; of as many of these as are asked for are the shapes
    **COLOURS,
    "black": (26, 26, 30),
    "pink": (244, 156, 200),
    "turquoise": (40, 196, 186),
    "lime": (186, 230, 50),
    "brown": (100, 58, 36),
    "magenta": (214, 40, 150),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CAMERAS = {"static": 0, "pans left": 1, "pans right": -1}  # which way the background goes
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(TONES),
    "direction": tuple(DIRECTIONS),
    "background": tuple(BACKGROUNDS),
    "camera": tuple(CAMERAS),
}
PROMPT = "Describe the video."
_FRAMES, _FPS, _SECONDS = 8, 24, 2.0
FILM_FPS = round(_FRAMES / _SECONDS)  # a film has just the frames of the contact sheets
_FINER = 4  # shapes are drawn this much larger and scaled down
_PAINTED = 8  # pictures of each background
_CLIPS_PER_VIDEO, _CLIPS_PER_PART = 4, 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What is true of a clip."""

    shape: str
    colour: str
    direction: str
    background: str
    camera: str
    letters: bool

    @property
    def caption(self) -> str:
        words = [f"A {self.colour} {self.shape} moves {self.direction} across a {self.background}."]
        if self.camera != "static":
            words.append(f"The camera {self.camera}.")
        if self.letters:
            words.append("There is text.")
        return " ".join(words)

    @property
    def look(self) -> tuple[str, str]:
        """The combination of which some are kept out of training."""
        return self.colour, self.shape


def unseen(look: tuple[str, str]) -> bool:
    """Whether a combination of colour and shape is kept out of training: one in six, each colour and shape alike."""
    colour, shape = look
    return (list(TONES).index(colour) + SHAPES.index(shape)) % 6 == 0


def scenes(
    count: int, *, seed: int = 0, new: bool | None = False, simple: bool = False, colours: int = len(COLOURS)
) -> Iterator[Scene]:
    """Draw scenes. ``new``: of combinations kept out of training, or not, or (None) of all."""
    random = np.random.default_rng(seed)
    names = list(TONES)[:colours]
    looks = [look for look in itertools.product(names, SHAPES) if new is None or unseen(look) == new]
    for _ in range(count):
        colour, shape = looks[random.integers(len(looks))]
        scene = Scene(
            shape=shape,
            colour=colour,
            direction=str(random.choice(list(DIRECTIONS))),
            background=str(random.choice(list(BACKGROUNDS))),
            camera=str(random.choice(list(CAMERAS), p=[0.6, 0.2, 0.2])),
            letters=bool(random.random() < 0.3),
        )
        yield dataclasses.replace(scene, camera="static", letters=False) if simple else scene


def draw(scene: Scene, *, seed: int, side: int = 48, grain: bool = True, simple: bool = False) -> np.ndarray:
    """The contact sheet of a clip, 8 S S 3 RGB uint8. Without ``grain`` the background has no fine detail."""
    random = np.random.default_rng(seed)
    world = _painted(scene.background, int(random.integers(_PAINTED)), side, grain)
    world = np.roll(world, tuple(random.integers(0, side, 2)), (0, 1))
    if random.random() < 0.5:
        world = world[:, ::-1]
    size = random.uniform(0.36, 0.44)  # of the frame's side, from the middle to the outline
    start, travel = random.uniform(0, side, 2), random.uniform(0.055, 0.075) * side
    if simple:
        start = side / 2 + (start - side / 2) / 8
    pan = random.uniform(0.04, 0.06) * side * CAMERAS[scene.camera]
    mask = silhouette(scene.shape, round(size * side), side)
    step = np.array(DIRECTIONS[scene.direction], np.float64)
    colour = np.array(TONES[scene.colour], np.float32) * random.uniform(0.9, 1.05)
    frames = np.empty((_FRAMES, side, side, 3), np.uint8)
    for k in range(_FRAMES):
        behind = _shifted(world, pan * k, 0.0)
        x, y = start + step * travel * k
        opacity = _shifted(mask, x, y)[..., None]
        frames[k] = np.clip(behind * (1 - opacity) + colour * opacity, 0, 255)
        if scene.letters:
            _letter(frames[k])
    return frames


@functools.lru_cache(maxsize=256)
def _painted(background: str, number: int, side: int, grain: bool) -> np.ndarray:
    """A background that goes on over its edges, S S 3 float32."""
    quarter = paint(side // 2, side // 2, background, number).astype(np.float32)
    if not grain:
        quarter = cv2.GaussianBlur(quarter, (0, 0), side / 32, borderType=cv2.BORDER_REFLECT)
    half = np.concatenate([quarter, quarter[::-1]])
    return np.concatenate([half, half[:, ::-1]], axis=1)


@functools.lru_cache(maxsize=512)
def silhouette(shape: str, size: int, side: int) -> np.ndarray:
    """The opacity of a shape around the corner (0, 0) of a torus, S S float32; ``size`` px from middle to outline."""
    fine = np.zeros((side * _FINER, side * _FINER), np.uint8)
    middle, reach = side * _FINER // 2, size * _FINER
    if shape in ("circle", "ring"):
        cv2.circle(fine, (middle, middle), round(reach * 0.62), 255, -1)
    if shape == "ring":
        cv2.circle(fine, (middle, middle), round(reach * 0.34), 0, -1)
    if shape in ("bar", "cross"):
        long, thin = round(reach * 0.8), round(reach * 0.2)
        cv2.rectangle(fine, (middle - long, middle - thin), (middle + long, middle + thin), 255, -1)
        if shape == "cross":
            cv2.rectangle(fine, (middle - thin, middle - long), (middle + thin, middle + long), 255, -1)
    mask = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.roll(mask, (-(side // 2), -(side // 2)), (0, 1))


def _shifted(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """A picture of a torus moved by (x, y), to a fraction of a pixel."""
    left, top = int(np.floor(x)), int(np.floor(y))
    across, down = np.float32(x - left), np.float32(y - top)
    whole = np.roll(picture, (top, left), (0, 1))
    if across:
        whole = (1 - across) * whole + across * np.roll(whole, 1, 1)
    if down:
        whole = (1 - down) * whole + down * np.roll(whole, 1, 0)
    return np.asarray(whole)


def _letter(frame: np.ndarray) -> None:
    """Put a dark band with light letters across the foot of a frame."""
    side = frame.shape[0]
    top = round(0.84 * side)
    frame[top:] = (24, 24, 32)
    cv2.putText(frame, "NEWS", (round(0.2 * side), round(0.96 * side)), 0, side / 140, (250, 250, 250), 1, cv2.LINE_AA)


def make_world(
    folder: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    side: int = 48,
    new: bool | None = False,
    grain: bool = True,
) -> Store:
    """Write the tables of a run over generated clips, with true captions. Four clips make a video.

    Args:
        folder: of the run; made if it does not exist.
        count: of clips.
        side: of the contact sheet's pictures, px.
        new: see ``scenes``.
        grain: see ``draw``.
    """
    store = Store(folder)
    store.create()
    drawn = enumerate(scenes(count, seed=seed, new=new))
    for number in itertools.count():
        batch = list(itertools.islice(drawn, _CLIPS_PER_PART))
        if not batch:
            break
        store.commit(_part(f"world-{number:05d}", batch, seed, side, grain), sheets=True)
    truth = {clip_id(seed, i): dataclasses.asdict(scene) for i, scene in enumerate(scenes(count, seed=seed, new=new))}
    (store.root / "truth.json").write_text(json.dumps(truth))
    return store


def read_truth(folder: str | os.PathLike[str]) -> dict[str, Scene]:
    """What is true of each clip that ``make_world`` wrote."""
    truth = json.loads((Path(folder) / "truth.json").read_text())
    return {key: Scene(**scene) for key, scene in truth.items()}


def write_films(
    folder: str | os.PathLike[str],
    count: int,
    *,
    clips: int = 50,
    seed: int = 0,
    side: int = 48,
    new: bool | None = False,
    grain: bool = True,
    simple: bool = False,
    colours: int = len(COLOURS),
) -> dict[str, list[Scene]]:
    """Encode films of clips of 2 s without transitions, nearly without loss; files that are there already stay.

    Args:
        folder: made if it does not exist.
        count: of films.
        clips: of each.
        side: of the picture, px.
        new: see ``scenes``.
        grain: see ``draw``; what is to be learnt by a VAE in minutes has none.
        simple: of the simple world.
        colours: that shapes may have: how many of ``TONES``.

    Returns:
        The truth: file name -> its scenes in order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn, films = scenes(count * clips, seed=seed, new=new, simple=simple, colours=colours), {}
    for number in range(count):
        name = f"film_{number:03d}.mp4"
        films[name] = list(itertools.islice(drawn, clips))
        if not (folder / name).exists():
            first = seed * 1_000_003 + number * clips
            _write_film(
                folder / name,
                [
                    draw(scene, seed=first + i, side=side, grain=grain, simple=simple)
                    for i, scene in enumerate(films[name])
                ],
            )
    return films


def _write_film(path: Path, clips: list[np.ndarray]) -> None:
    with aside(path) as file, av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FILM_FPS, options={"preset": "veryfast", "crf": "6"})
        stream.height, stream.width, stream.pix_fmt = *clips[0].shape[1:3], "yuv420p"
        for picture in itertools.chain.from_iterable(clips):
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def clip_id(seed: int, number: int) -> str:
    """The name of a clip, by which it goes in the tables."""
    place = number % _CLIPS_PER_VIDEO
    return f"{_video_id(seed, number)}-{round(place * _SECONDS * 1000):08d}-{round((place + 1) * _SECONDS * 1000):08d}"


def _video_id(seed: int, number: int) -> str:
    return hashlib.blake2b(f"{seed}:{number // _CLIPS_PER_VIDEO}".encode(), digest_size=8).hexdigest()


def _part(part_id: str, batch: list[tuple[int, Scene]], seed: int, side: int, grain: bool) -> Part:
    clips, frames, videos = [], [], {}
    for number, scene in batch:
        video_id, start_s = _video_id(seed, number), number % _CLIPS_PER_VIDEO * _SECONDS
        own = clip_id(seed, number)
        size = {"fps": float(_FPS), "width": side, "height": side, "codec": "h264", "has_audio": False}
        video = {"video": f"{video_id}.mp4", "video_id": video_id}
        clips.append(
            {
                **video,
                **size,
                "clip_id": own,
                "start_s": start_s,
                "end_s": start_s + _SECONDS,
                "duration_s": _SECONDS,
                "num_frames": round(_FPS * _SECONDS),
                "status": "kept",
                "caption": scene.caption,
                "caption_version": "v1",
                "caption_model": "truth",
            }
        )
        length_s = _SECONDS * _CLIPS_PER_VIDEO
        videos[video_id] = {**video, **size, "status": "done", "duration_s": length_s, "num_clips": _CLIPS_PER_VIDEO}
        for k, picture in enumerate(draw(scene, seed=seed * 1_000_003 + number, side=side, grain=grain)):
            t_s = start_s + (k + 0.5) * _SECONDS / _FRAMES
            frames.append({"clip_id": own, "t_s": t_s, "jpeg": to_jpeg(picture)})
    return Part(
        part_id,
        videos=conform(pa.Table.from_pylist(list(videos.values())), VIDEOS),
        clips=conform(pa.Table.from_pylist(clips), extend(CLIPS, CAPTIONS)),
        frames=pa.Table.from_pylist(frames, schema=FRAMES),
    )


def to_jpeg(picture: np.ndarray) -> bytes:
    """A picture H W 3 RGB as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=92)
    return file.getvalue()


def attributes_of(caption: str) -> dict[str, str | None]:
    """What a caption says of each attribute; None where it says nothing that can be read."""
    words = caption.replace(".", " ").split()
    said: dict[str, str | None] = {}
    for name in ("shape", "colour", "direction"):
        wanted = [word for word in words[:6] if word in ATTRIBUTES[name]]
        said[name] = wanted[0] if len(wanted) == 1 else None
    said["background"] = next((name for name in BACKGROUNDS if f"a {name}" in caption), None)
    camera = [name for name in CAMERAS if f"The camera {name}" in caption]
    said["camera"] = camera[0] if camera else "static"
    said["letters"] = str("There is text" in caption)
    return said
