"""Folders of weights in the form of diffusers: ``config.json`` beside safetensors, whole or in shards. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.errors import UsageError
from training.vae.config import VAEConfig

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
_FIX = f"expected {CONFIG} and {WEIGHTS} (or {INDEX} and its shards), as diffusers' save_pretrained writes them"


def find(folder: str | Path) -> Path:
    """The folder that holds the VAE: ``folder`` itself, or its subfolder ``vae`` when it is that of a pipeline."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder} to load a VAE from; give the folder of a VAE or of a whole pipeline")
    for candidate in (folder, folder / "vae"):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UsageError(f"{folder} has no {CONFIG}, nor has its subfolder vae: {_FIX}")


def read_config(folder: Path) -> VAEConfig:
    """Read ``folder/config.json``; UsageError if it is damaged or configures something else."""
    file = folder / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UsageError("it is no JSON object")
        return VAEConfig.from_mapping(values)
    except (UsageError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise UsageError(f"{file} is no configuration of a VAE: {error}") from error


def read_weights(folder: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor by name, from one file or from the shards that the index names."""
    state: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise UsageError(f"{file} is damaged ({error}); copy it again") from error
        state.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
    return state


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which can run code: convert it to safetensors first" if pickled else ""
        raise UsageError(f"{folder} has no weights: {_FIX}{hint}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} is no index of shards; copy it again") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}, named in {INDEX}; copy them beside it")
    return [folder / name for name in names]


def check_names(folder: Path, *, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise UsageError, naming some of them, unless ``found`` has exactly the tensors ``wanted``, in their shapes."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    for what, names in (("lack", missing), ("have besides", extra), ("have in another shape", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(
                f"the weights in {folder} {what} {', '.join(names[:3])}{more}: they do not belong to its {CONFIG}"
            )


def write(folder: str | Path, *, config: VAEConfig, state: Mapping[str, Tensor]) -> None:
    """Write weights and configuration, each aside and then renamed, so that a reader never meets half a file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with _aside(folder / WEIGHTS) as file:
        save_file(tensors, file, metadata={"format": "pt"})
    with _aside(folder / CONFIG) as file:
        file.write_text(config.to_json(), encoding="utf-8")


@contextmanager
def _aside(file: Path) -> Iterator[Path]:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
