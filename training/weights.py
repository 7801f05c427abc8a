"""Folders of weights in the form of diffusers: ``config.json`` beside safetensors, whole or in shards. No pickle."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, dtype, empty

from curation.errors import UsageError
from curation.files import aside

Config = TypeVar("Config")

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARD_BYTES = 10 * 10**9  # as diffusers
_POINTER = b"version https://git-lfs"
_FIX = f"expected {CONFIG} and {WEIGHTS} (or {INDEX} and its shards), as diffusers' save_pretrained writes them"


def find(folder: str | Path, *, part: str) -> Path:
    """The folder that holds the model: ``folder`` itself, or its subfolder ``part`` when it is that of a pipeline."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder} to load a {part} from; give the folder of a {part} or of a pipeline")
    # A pipeline's own config.json (some hubs add one) must not hide the model in the subfolder.
    for candidate in (folder / part, folder):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UsageError(f"{folder} has no {CONFIG}, nor has its subfolder {part}: {_FIX}")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; UsageError, naming the file, if there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{file} is no JSON object")
    return values


def read_config(folder: Path, build: Callable[[Mapping[str, Any]], Config], *, part: str) -> Config:
    """What ``build`` makes of ``folder/config.json``; UsageError if that is damaged or of something else."""
    file = folder / CONFIG
    values = read_json(file)
    try:
        return build(values)
    except (UsageError, TypeError) as error:
        raise UsageError(f"{file} is no configuration of a {part}: {error}") from error


def known_fields(kind: type, values: Mapping[str, Any], *, name: str, part: str) -> dict[str, Any]:
    """The fields of the dataclass ``kind`` in a parsed ``config.json``.

    Names it does not know are warned of and left out, as diffusers does. Raises UsageError if it is the configuration
    of another class than diffusers' ``name``.
    """
    if values.get("_class_name", name) != name:
        raise UsageError(f"it configures {values['_class_name']!r}, not {name!r}")
    known = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    for unknown in sorted(given.keys() - known):
        warnings.warn(f"the {part}'s config has the unknown field {unknown!r}; it is left out", stacklevel=3)
    return {key: value for key, value in given.items() if key in known}


def read_weights(folder: Path, *, dtype: dtype | None) -> dict[str, Tensor]:
    """Every tensor by name, from one file or from the shards that the index names; ``dtype`` None keeps theirs."""
    state: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise UsageError(_damaged(file, error)) from error
        state.update({name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()})
    return state


def read_shapes(folder: Path, *, file: str = WEIGHTS) -> dict[str, Tensor]:
    """Every tensor by name, without its numbers: from the headers of the files, which say whether these are whole.

    ``file``: what they are called; of a model of transformers ``model.safetensors``.
    """
    found: dict[str, Tensor] = {}
    for path in _files(folder, file):
        try:
            with safe_open(path, framework="pt") as tensors:
                shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise UsageError(_damaged(path, error)) from error
        found.update({name: empty(shape, device="meta") for name, shape in shapes.items()})
    return found


def _damaged(file: Path, error: SafetensorError) -> str:
    with file.open("rb") as opened:
        is_pointer = opened.read(len(_POINTER)) == _POINTER
    fix = "it is the pointer that git-lfs leaves in its place: git lfs pull" if is_pointer else "copy it again"
    return f"{file} is damaged ({error}); {fix}"


def _files(folder: Path, name: str = WEIGHTS) -> list[Path]:
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt") for file in folder.glob(pattern))
        hint = f"; {pickled[0]} is a pickle, which can run code: convert it to safetensors first" if pickled else ""
        raise UsageError(f"{folder} has no weights: {_FIX.replace(WEIGHTS, name)}{hint}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise UsageError(f"{index} is no index of shards; copy it again")
    names = sorted({str(name) for name in shards.values()})
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}, named in {index.name}; copy them beside it")
    return [folder / name for name in names]


def check_names(folder: Path, *, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise UsageError, naming some of them, unless ``found`` has exactly the tensors ``wanted``, in their shapes."""
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    problems = {
        "lack": sorted(wanted.keys() - found.keys()),
        "have besides": sorted(found.keys() - wanted.keys()),
        "have in another shape": shapes,
    }
    for what, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(
                f"the weights in {folder} {what} {', '.join(names[:3])}{more}: they do not belong to its {CONFIG}"
            )


def write(folder: str | Path, *, config: str, state: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write weights (in shards of at most ``shard_bytes``, where a tensor allows) and the text of the configuration.

    Each file is written aside and then renamed; the configuration comes last, so that a reader never meets half a
    model. Where one file takes the place of another of the same kind, there is a whole model at every moment. Files of
    an earlier model that would be read in place of these are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    shards = _shards(tensors, shard_bytes)
    there = folder / CONFIG
    if len(shards) > 1 or (there.is_file() and there.read_bytes() != config.encode()):
        there.unlink(missing_ok=True)
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        stem = WEIGHTS.removesuffix(".safetensors")
        names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        with aside(folder / name) as file:
            save_file(shard, file, metadata={"format": "pt"})
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)
    else:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        with aside(folder / INDEX) as file:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / WEIGHTS).unlink(missing_ok=True)
    with aside(folder / CONFIG) as file:
        file.write_text(config, encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
