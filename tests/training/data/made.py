"""Shards of known truth for the loader's tests: every frame says which film it is from, and which one it is."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from curation.run import run
from tests.shards.films import Film, numbered, read_number
from training.data.loader import Batch, Loader
from training.data.settings import Bucket, DataSettings

CLIP = 20  # frames of a clip of the films
FPS = 24.0
_MINE = """
mine:
  stages: [{decode: {detector: none, max_clip_s: 1.0}}, sidecar_captions]
  shards: SHARDS
"""


def write_films(folder: Path, count: int) -> Path:
    """Films of three clips each; frame i of film k shows 100 k + i, and its caption is ``film k``."""
    folder.mkdir(parents=True)
    for k in range(count):
        Film(count=60, paint=lambda i, k=k: numbered(100 * k + i)).write(folder / f"{k}.mp4")  # type: ignore[misc]
        (folder / f"{k}.txt").write_text(f"film {k}")
    return folder


def curate(films: Path, output: Path, shards: str) -> Path:
    """Run a pipeline over films, so that the shards are what users have."""
    output.mkdir(parents=True, exist_ok=True)
    config = output.parent / f"{output.name}.yaml"
    config.write_text(_MINE.replace("SHARDS", shards))
    run("mine", [str(films)], output, config=str(config), engine="local")
    return output


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A shard of (key, suffix -> content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def read_tar(path: Path) -> dict[str, dict[str, bytes]]:
    """Key -> suffix -> content of a shard."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def row(num_frames: int = CLIP, *, height: int = 64, width: int = 384, fps: float = FPS, **more: Any) -> bytes:
    """The json of a sample, as our writer puts it beside a video."""
    about = {"num_frames": num_frames, "fps": fps, "width": width, "height": height, "codec": "h264"}
    return json.dumps({**about, "encoding": {"how": "encoded"}, **more}).encode()


@functools.cache
def clip(first: int = 0, num_frames: int = CLIP, suffix: str = ".mp4", codec: str = "libx264") -> bytes:
    """A clip whose frames show ``first``, ``first`` + 1, and so on."""
    from tests.helpers import scratch

    options = {"libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"}, "libsvtav1": {"preset": "10"}}.get(codec)
    film = Film(
        suffix=suffix,
        codec=codec,
        count=num_frames,
        options=options or {"g": "12", "bf": "3"},
        paint=lambda i: numbered(first + i),
    )
    path = scratch() / f"{first}-{num_frames}-{codec}{suffix}"
    return film.write(path).read_bytes()


def sample(number: int, num_frames: int = CLIP, **more: Any) -> tuple[str, dict[str, bytes]]:
    """A good sample: its frames show 100 ``number`` + i."""
    parts = {"mp4": clip(100 * number, num_frames), "txt": f"film {number}".encode(), "json": row(num_frames, **more)}
    return f"clip-{number:04d}", parts


def numbers(batch: Batch) -> list[list[int]]:
    """The frame numbers that each sample of a batch shows."""
    return [[read_number(picture) for picture in video[0].numpy()] for video in batch.video]


def settings(shards: Path | str, *, frames: int = 9, batch_size: int = 4, **more: Any) -> DataSettings:
    """One bucket of the films' own size."""
    bucket = Bucket(frames=frames, height=64, width=384, batch_size=batch_size, fps=more.pop("fps", None))
    return DataSettings(shards=str(shards), buckets=more.pop("buckets", [bucket]), **more)


def take(loader: Loader, count: int) -> list[Batch]:
    """The next batches; the loader's state is then where they end."""
    batches: Iterator[Batch] = iter(loader)
    return [next(batches) for _ in range(count)]
