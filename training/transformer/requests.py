"""What ``cutroom sample`` is asked for, checked, and as jobs that each have a name that says the request.

request = Request(prompts=("a red ball",), sources=Sources(model="cogvideox-5b"))
for made in run(prepare(request), Path("out")):  # run is in produce.py
    print(made.name, made.status)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curation.errors import UsageError
from training.distributed import num_processes
from training.transformer import embeddings
from training.transformer.config import TransformerConfig
from training.transformer.extend import Shape, Window, check_window, plan
from training.transformer.given import Given, read_given
from training.transformer.models import Places, Sources, choose, find
from training.transformer.sampling import Sampling
from training.transformer.solvers import guidance, solver
from training.vae.config import Chunks, Tiles

_SLUG = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        prompts: empty takes every text of ``embeddings`` but the negative one.
        frames, height, width, fps: of the transformer's own training where None, or of the video that is extended.
        length: frames of the whole video, made in windows of ``frames``; None is one window more than is given.
        seed: of each prompt's first sample; the next ones count up.
        negative: a text to go away from, instead of no text (zeros).
        image: the first frame, for image-to-video.
        first, last: pictures that the video begins and ends with (given as clean frames).
        extend: a video to continue, and ``overlap``: how many of its last frames a window reads.
        loop: the video's end leads back to its start.
        dtype: see ``models.DTYPES``; None is bf16 on a GPU and fp32 elsewhere.
        offload: transformer and VAE are on the device one after the other (the text encoder always is gone by then).
        embeddings: a file of ``save_embeddings``, instead of a text encoder.
    """

    prompts: tuple[str, ...] = ()
    sources: Sources
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    length: int | None = None
    settings: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    samples: int = 1
    negative: str | None = None
    image: Path | None = None
    first: Path | None = None
    last: Path | None = None
    extend: Path | None = None
    overlap: int | None = None
    loop: bool = False
    dtype: str | None = None
    device: str | None = None
    offload: bool = False
    chunks: Chunks | None = dataclasses.field(default_factory=Chunks)
    tiles: Tiles | None = None
    embeddings: Path | None = None
    save_embeddings: Path | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One sample. ``about`` is all that decides its pixels, and the name has the digest of it."""

    name: str
    prompt: str
    seed: int
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request found to be possible."""

    request: Request
    places: Places
    given: Given
    shape: Shape
    windows: tuple[Window, ...]
    fps: float
    dtype: str
    device: torch.device
    texts: dict[str, Tensor]  # what is embedded already
    prompts: tuple[str, ...]  # of all processes
    jobs: tuple[Job, ...]  # of this process

    @property
    def steps(self) -> int:
        """Passes of the transformer for one sample."""
        return len(self.windows) * self.request.settings.steps


def prepare(request: Request) -> Prepared:
    """Check everything that can be known before weights are loaded.

    Raises:
        UsageError: what is wrong with the request, and what to do.
    """
    _check(request)
    dtype, device = choose(request.dtype, request.device)
    places = find(request.sources, needs_text=request.embeddings is None)
    config = places.config
    solver(request.settings.solver, places.diffusion, request.settings.steps)
    guidance(request.settings.course)
    texts = {} if request.embeddings is None else embeddings.read(request.embeddings)
    prompts = list(dict.fromkeys(request.prompts)) or [text for text in texts if text != request.negative]
    if not prompts:
        raise UsageError("no prompt: give some, --prompts FILE, or --embeddings FILE that has some")
    if request.embeddings is not None:
        negative = [] if request.negative is None else [request.negative]
        embeddings.check(request.embeddings, texts, [*prompts, *negative], config=config)
    given = read_given(request.image, request.first, request.last, request.extend)
    frames, height, width, fps = size_of(request, places, given)
    check_window(config, places.vae_config, frames=frames, height=height, width=width)
    _check_image(request, config)
    windows = _windows(request, frames, given)
    for window in windows:
        check_window(config, places.vae_config, frames=window.frames, height=height, width=width)
    shape = Shape(height=height, width=width, chunks=request.chunks, tiles=request.tiles)
    prepared = Prepared(
        request=request,
        places=places,
        given=given.fitted(height, width),
        shape=shape,
        windows=windows,
        fps=fps,
        dtype=dtype,
        device=device,
        texts=texts,
        prompts=tuple(prompts),
        jobs=(),
    )
    rank = int(os.environ.get("RANK", "0"))
    jobs = tuple(_jobs(prepared, prompts))[rank :: num_processes()]
    return dataclasses.replace(prepared, jobs=jobs)


def _check(request: Request) -> None:
    if request.samples < 1:
        raise UsageError(f"--samples {request.samples}: 1 or more are meant")
    ways = {
        "--extend": request.extend,
        "--image": request.image,
        "--first or --last": request.first or request.last,
    }
    asked = [name for name, value in ways.items() if value is not None]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} each say how the video begins; choose one")
    if request.loop and request.last is not None:
        raise UsageError("--loop and --last each say how the video ends; choose one")
    if request.last is not None and request.length is not None:
        raise UsageError("--last is made in one window: choose its length with --frames, and leave --length out")
    if request.embeddings is not None and request.save_embeddings is not None:
        raise UsageError("--embeddings are saved already; leave --save-embeddings out")
    if request.fps is not None and not 0 < request.fps <= 240:
        raise UsageError(f"--fps {request.fps:g}: above 0 and up to 240 is meant, such as 8")


def _check_image(request: Request, config: TransformerConfig) -> None:
    if config.reads_image and not any((request.image, request.first, request.extend)):
        raise UsageError(
            "this transformer continues a picture (image-to-video): give one as --image, or a video as --extend"
        )
    if request.image is not None and not config.reads_image:
        raise UsageError(
            "this transformer reads no picture (text-to-video): leave --image out, load an image-to-video one, or, if "
            "it was trained with masks, give the picture as --first"
        )


def size_of(request: Request, places: Places, given: Given) -> tuple[int, int, int, float]:
    """Frames of a window, height, width and frames per second: as asked, as given, or as the model was trained."""
    config, ratio = places.config, places.vae_config.space_ratio
    height, width = config.sample_height * ratio, config.sample_width * ratio
    if config.patch_size_t is not None and config.ofs_embed_dim:
        height, width = 768, 1360  # 1.5 image-to-video states the largest size that its positions reach, not this
    if given.before is not None:
        height, width = given.before.shape[1:3]
    fps = request.fps or given.fps or (16.0 if config.patch_size_t is not None else 8.0)
    return request.frames or config.sample_frames, request.height or height, request.width or width, fps


def _windows(request: Request, frames: int, given: Given) -> tuple[Window, ...]:
    if request.last is not None:
        head = 1 if request.first is not None else 0
        if frames < 5 + head * 4:
            raise UsageError(f"--frames {frames}: {5 + head * 4} are the fewest that leave room between pictures")
        return (Window(frames, head=head, tail=1),)
    have = 0 if given.before is None else len(given.before)
    if request.extend is not None and request.overlap is not None and have < request.overlap:
        raise UsageError(f"--overlap {request.overlap}: {request.extend} has only {have} frames; give a smaller one")
    return tuple(plan(request.length, frames=frames, overlap=request.overlap, have=have, loop=request.loop))


def _jobs(prepared: Prepared, prompts: Sequence[str]) -> Iterator[Job]:
    request = prepared.request
    common: dict[str, Any] = {
        "negative": request.negative,
        "height": prepared.shape.height,
        "width": prepared.shape.width,
        "fps": prepared.fps,
        "windows": [dataclasses.asdict(window) for window in prepared.windows],
        "settings": dataclasses.asdict(request.settings),
        "dtype": prepared.dtype,
        "chunks": request.chunks and dataclasses.asdict(request.chunks),
        "tiles": request.tiles and dataclasses.asdict(request.tiles),
        "given": prepared.given.identities(),
        "models": prepared.places.identities(),
    }
    for prompt in prompts:
        text = prepared.texts.get(prompt)
        saved = {} if text is None else {"embedding": hashlib.blake2b(_bytes(text), digest_size=8).hexdigest()}
        for seed in range(request.seed, request.seed + request.samples):
            about = {"prompt": prompt, "seed": seed, **saved, **common}
            digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=6).hexdigest()
            yield Job(f"{_slug(prompt)}-{seed}-{digest}", prompt, seed, about)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:_SLUG].strip("-") or "sample"
