"""``cutroom vae reconstruct`` and ``eval``: what a VAE makes of videos it is given."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from torch import Tensor

from curation.devices import find_device
from curation.errors import UsageError, VideoError, one_line
from curation.inputs import VIDEO_SUFFIXES, find_videos
from curation.video import Video
from training.data.faults import BadDataError
from training.data.loader import Loader, open_catalogue
from training.data.settings import Bucket, DataSettings
from training.perceptual import LEAST_SIDES, Perceptual, PerceptualSettings, check_sides
from training.pictures import beside, contact_sheet, to_frames, write_picture, write_video
from training.pretrained import fetch
from training.quality import flicker, psnr, ssim
from training.vae.config import Chunks, Tiles
from training.vae.model import VAE

_NAMED = 20  # samples that are left out, for each reason
_LONGEST_BYTES = 200  # of a name, so that there is room for what is added: file systems end at 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """How videos are read and passed through.

    Attributes:
        frames: of each, from its start, at most; made 4k+1.
        height, width: what shards are cut to; a file keeps its size. Both less what is over a multiple of 8.
        chunks: None passes each through whole.
        tiles: None takes pictures whole.
        lpips: a file with the trunk's weights (see ``PerceptualSettings``), ``torchvision`` for its own, None for none.
    """

    frames: int = 17
    height: int = 256
    width: int = 256
    chunks: Chunks | None = dataclasses.field(default_factory=Chunks)
    tiles: Tiles | None = None
    lpips: str | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width that samples of shards really have."""
        return self.height // 8 * 8, self.width // 8 * 8


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """One video, before and after. (3, T, H, W) in -1..1 each."""

    name: str
    original: Tensor
    made: Tensor
    fps: float
    figures: dict[str, float | None]


class Reconstructor:
    """A VAE that is only looked at.

    Args:
        weights: a folder, or a repository on the hub.

    Raises:
        UsageError: the weights, or those of LPIPS, are not there, or the size of the look is too small.
    """

    def __init__(self, weights: str, look: Look, *, device: str | None = None) -> None:
        if min(look.sides) < 8:
            raise UsageError(f"the VAE takes pictures of at least 8 px a side, not {look.height}x{look.width}")
        self._look = look
        self._device = find_device(device)
        self._vae = VAE.from_pretrained(fetch(weights, "vae")).to(self._device)
        self._perceptual: Perceptual | None = None
        if look.lpips is not None:
            trunk = None if look.lpips == "torchvision" else look.lpips
            settings = PerceptualSettings(weight=1.0, network="alex", trunk=trunk)
            check_sides(settings, *look.sides)
            self._perceptual = Perceptual(settings).to(self._device)

    def each(self, source: str, *, limit: int | None = None) -> Iterator[Reconstruction | str]:
        """Every video of a source: there and back. A video that cannot be read is a line that says why.

        Args:
            source: a video file, a folder of them, or whatever ``shards.read.find_shards`` takes.
            limit: only the first so many that can be read.
        """
        files = _find_files(source)
        found = _from_shards(source, self._look, limit) if files is None else _from_files(files, self._look, limit)
        for name, video, fps in found:
            yield name if video is None else self._reconstruct(name, video.to(self._device), fps)

    @torch.inference_mode()
    def _reconstruct(self, name: str, video: Tensor, fps: float) -> Reconstruction:
        original = video[None].float() / 127.5 - 1  # (1, 3, T, H, W)
        latent = self._vae.encode(original, chunks=self._look.chunks, tiles=self._look.tiles).mean
        made = self._vae.decode(latent, chunks=self._look.chunks, tiles=self._look.tiles)
        values = {"psnr": psnr(made, original), "ssim": ssim(made, original), "flicker": flicker(made, original)}
        if self._perceptual is not None:
            values["lpips"] = self._perceptual(made, original)
        figures = {key: None if math.isnan(float(value)) else float(value) for key, value in values.items()}
        return Reconstruction(name, original[0], made[0], fps, figures)


def write(found: Reconstruction, folder: Path, written: set[str]) -> list[Path]:
    """The original beside the reconstruction: an MP4, and a contact sheet of both. Returns the files.

    Keys of samples may have folders, and different shards the same keys: ``written`` holds the names that are taken,
    and takes in this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    both = [to_frames(found.original), to_frames(found.made)]
    paths = _targets(found.name, folder, written)
    write_video(paths[0], beside(both), fps=found.fps)
    write_picture(paths[1], contact_sheet(both))
    return paths


def check_output(source: str, folder: Path) -> None:
    """Raises UsageError where what ``write`` makes of a source would take the place of one of its videos."""
    files, written = _find_files(source) or [], set[str]()
    originals = {os.path.realpath(path) for _, path in files}
    for name, _ in files:
        for target in _targets(name, folder, written):
            if os.path.realpath(target) in originals:
                raise UsageError(f"--output {folder}: {target} is a video of {source}; name another folder")


def _targets(name: str, folder: Path, written: set[str]) -> list[Path]:
    """The files of a sample of this name. What is added to it keeps a lone video from being its own target."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")
    plain = plain.encode()[:_LONGEST_BYTES].decode(errors="ignore")
    free = next(one for one in _numbered(plain) if one not in written)
    written.add(free)
    return [folder / f"{free}.mp4", folder / f"{free}.jpg"]


def _numbered(name: str) -> Iterator[str]:
    yield f"{name}-reconstructed"
    for number in itertools.count(2):
        yield f"{name}-{number}-reconstructed"


def mean(figures: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Over videos; of a figure over those that have it."""
    result: dict[str, float | None] = {}
    for name in dict.fromkeys(name for each in figures for name in each):
        known = [value for each in figures if (value := each.get(name)) is not None]
        result[name] = sum(known) / len(known) if known else None
    return result


def _find_files(source: str) -> list[tuple[str, str]] | None:
    """The videos of a source as (name, path); None where it is to be read as shards."""
    path = url2pathname(urlsplit(source).path) if source.startswith("file://") else source
    if os.path.isdir(path):
        if _holds_shards(Path(path)):
            return None
        try:
            videos = find_videos([path]).videos
        except UsageError as error:
            why = str(error).removeprefix("--input ")
            raise UsageError(f"{source} holds no shards (an index.json or tars), and as videos: {why}") from error
        return [(os.path.splitext(os.path.relpath(video, path))[0], video) for video in videos]
    suffix = Path(path).suffix.lower()
    if os.path.isfile(path):  # whatever it is called, if it is nothing of shards
        return None if suffix in (".tar", ".json", ".txt") else [(Path(path).stem, path)]
    if suffix in VIDEO_SUFFIXES and not glob.has_magic(path):
        raise UsageError(f"there is no file {source}")
    return None


def _holds_shards(folder: Path) -> bool:
    places = (folder, folder / "shards")
    return any((place / "index.json").is_file() or any(place.glob("*.tar")) for place in places)


def _from_files(files: Sequence[tuple[str, str]], look: Look, limit: int | None) -> Iterator[tuple[str, Any, float]]:
    """The first frames of each file as (name, video (3, T, H, W) uint8, fps)."""
    num_read = 0
    for name, path in files:
        if num_read == limit:
            return
        try:
            video, fps = _read_file(path, look)
        except VideoError as error:
            yield f"{path}: {one_line(error)}", None, 0.0
            continue
        num_read += 1
        yield name, video, fps


def _read_file(path: str, look: Look) -> tuple[Tensor, float]:
    pictures, times = [], []
    with Video(path) as video:
        for frame in video.frames():
            width, height = (side // 8 * 8 for side in (video.width, video.height))
            if min(width, height) < (8 if look.lpips is None else LEAST_SIDES["alex"]):
                raise VideoError(f"is {video.width}x{video.height}, too small for the VAE, or for LPIPS")
            picture = frame.picture(video.width, video.height)[:height, :width, ::-1]
            pictures.append(torch.from_numpy(picture.copy()))
            times.append(frame.t_s)
            if len(pictures) == look.frames:
                break
    count = (len(pictures) - 1) // 4 * 4 + 1
    step_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return torch.stack(pictures[:count]).permute(3, 0, 1, 2), 1 / step_s if step_s > 0 else 25.0


def _from_shards(source: str, look: Look, limit: int | None) -> Iterator[tuple[str, Any, float]]:
    """Samples of shards in their order, cut to one size from the middle."""
    frames = (look.frames - 1) // 4 * 4 + 1
    height, width = look.sides
    bucket = Bucket(frames=frames, height=height, width=width)
    settings = DataSettings(
        shards=source, buckets=[bucket], held_out=0.0, crop="center", shuffle=False, min_pixels=1e-6, max_bad=1.0
    )
    catalogue = open_catalogue(settings)
    with Loader(settings, catalogue=catalogue, epochs=1) as loader:
        yield from itertools.islice(_samples(loader), limit)
        assignment, keys = loader.plan(0).assignment, catalogue.table["key"]
        failed = [(reason, count, loader.faults.named(reason)) for reason, count in loader.faults.reasons.items()]
        for reason, count in assignment.dropped().items():
            of_it = np.flatnonzero(assignment.why == assignment.reasons.index(reason))
            failed.append((reason, count, [keys[int(one)].as_py() for one in of_it[:_NAMED]]))
    for reason, count, named in failed:
        for name in named:
            yield f"{reason}: {name}", None, 0.0
        if count > len(named):
            yield f"{reason}: {count - len(named)} more", None, 0.0


def _samples(loader: Loader) -> Iterator[tuple[str, Any, float]]:
    """Each sample that can be read, once: others stand in for those that cannot, and come in their own place too."""
    try:
        for batch in loader:
            count = 0 if batch.is_padding else len(batch) - batch.repeats
            for key, video, times_s in itertools.islice(
                zip(batch.keys, batch.video, batch.times_s, strict=True), count
            ):
                step_s = float(times_s[-1] - times_s[0]) / max(1, len(times_s) - 1)
                yield key, video, 1 / step_s if step_s > 0 else 25.0
    except BadDataError:  # none of many that follow could stand in
        yield "the rest was not read, after so many in a row that cannot be", None, 0.0
