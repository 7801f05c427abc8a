"""The samples of a request: making them one after the other, and writing their files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from curation.errors import UsageError, one_line
from curation.files import aside
from training.launch import is_first
from training.pictures import contact_sheet, to_frames, write_picture, write_video
from training.transformer import embeddings
from training.transformer.extend import make
from training.transformer.models import Models, load
from training.transformer.requests import Job, Prepared

_PACKAGES = ("cutroom", "torch", "transformers", "safetensors", "torchao")


@dataclasses.dataclass(frozen=True)
class Made:
    """What became of a job. ``there``: files of this very request lay there already."""

    name: str
    prompt: str
    seed: int
    status: Literal["made", "there", "failed"]
    error: str | None = None


def run(prepared: Prepared, output: Path, *, each: Callable[[Job, int], None] | None = None) -> Iterator[Made]:
    """Make every sample that is not there yet: NAME.mp4, NAME.jpg (a contact sheet), and NAME.json, which comes last.

    A sample that fails costs itself only.

    Args:
        each: called after each pass of the transformer, with how many there were of this sample.

    Raises:
        UsageError: weights are damaged or of another model, or the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({one_line(error)})") from error
    left = [job for job in prepared.jobs if not _is_there(output, job)]
    for job in prepared.jobs:
        if job not in left:
            yield Made(job.name, job.prompt, job.seed, "there")
    texts = embedded(prepared, [job.prompt for job in left])
    if not left:
        return
    models = load(prepared.places, dtype=prepared.dtype, device=prepared.device, offload=prepared.request.offload)
    for job in left:
        try:
            write(output, job, make_one(models, prepared, job, texts, each=each), fps=prepared.fps)
        except Exception as error:  # out of memory, a full disk: the others may still be made
            yield Made(job.name, job.prompt, job.seed, "failed", _why(error))
        else:
            yield Made(job.name, job.prompt, job.seed, "made")


def _is_there(output: Path, job: Job) -> bool:
    return all((output / f"{job.name}{suffix}").is_file() for suffix in (".mp4", ".jpg", ".json"))


def embedded(prepared: Prepared, prompts: Sequence[str]) -> dict[str, Tensor]:
    """The embeddings of prompts and of the negative text, from their file or by the encoder; saved where asked.

    Of several processes the first saves those of all.
    """
    request, texts = prepared.request, dict(prepared.texts)
    saved = request.save_embeddings if is_first() else None
    if saved is not None:
        prompts = prepared.prompts
    if not prompts:
        return texts
    wanted = [*prompts, *([] if request.negative is None else [request.negative])]
    if absent := [text for text in wanted if text not in texts]:
        assert prepared.places.text is not None  # ``prepare`` has seen to it
        texts |= embeddings.embed(
            prepared.places.text, absent, config=prepared.places.config, dtype=prepared.dtype, device=prepared.device
        )
    if saved is not None:
        embeddings.save(saved, texts)
    return texts


def make_one(
    models: Models,
    prepared: Prepared,
    job: Job,
    texts: dict[str, Tensor],
    *,
    each: Callable[[Job, int], None] | None = None,
) -> Tensor:
    """The video (3, T, H, W) of a job in -1..1."""
    request, count = prepared.request, 0

    def tell(_index: int, _latents: Tensor) -> None:
        nonlocal count
        count += 1
        if each is not None:
            each(job, count)

    image, head, tail = prepared.given.tensors()
    video = make(
        models,
        texts[job.prompt][None],
        windows=prepared.windows,
        shape=prepared.shape,
        seeds=[job.seed],
        settings=request.settings,
        negative=None if request.negative is None else texts[request.negative][None],
        image=image,
        head=head,
        tail=tail,
        each=tell,
    )
    if not bool(video.isfinite().all()):
        raise ValueError(f"the result holds values that are no numbers; --dtype bf16 or fp32 may help ({job.name})")
    return video[0]


def write(output: Path, job: Job, video: Tensor, *, fps: float) -> None:
    """Write the files of a sample from its video (3, T, H, W) in -1..1."""
    frames = to_frames(video)
    write_video(output / f"{job.name}.mp4", frames, fps=fps)
    write_picture(output / f"{job.name}.jpg", contact_sheet([frames]))
    about = {**job.about, "num_frames": len(frames), "versions": versions()}
    with aside(output / f"{job.name}.json") as file:
        file.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Of the packages that decide what is made, those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _why(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: --offload, --tiled, fewer --frames, or --dtype int8 need less"
    return one_line(error)
