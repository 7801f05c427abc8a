"""``cutroom convert``: transformers, VAEs and LoRAs between the form of diffusers, which is ours, and that of SAT.

    convert("cogvideox-5b", "sat", to="sat")                  # ours or diffusers' to SAT's
    convert("sat", "diffusers", to="diffusers")               # and back: equal to the bit
    convert("lora", "lora-peft", to="peft", kind="lora")

Tensors are renamed, cut and joined, and keep their precision. What the other form has no place for is written beside
the weights and read again on the way back: SAT's tables and losses (``sat_rest.safetensors``), our ``config.json``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.errors import UsageError, nearest
from curation.files import aside
from training import weights
from training.transformer import adapters, sat
from training.transformer.config import TransformerConfig
from training.transformer.diffusion import FILE as SCHEDULER
from training.transformer.diffusion import Diffusion
from training.transformer.model import PART, Transformer
from training.transformer.models import (
    SAT_VAE,
    find_sat,
    load_transformer,
    sat_config,
    sat_diffusion,
    sat_vae_config,
    trained,
)
from training.vae.config import VAEConfig
from training.vae.model import VAE

REST = "sat_rest.safetensors"
KINDS = ("transformer", "vae", "lora")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    kind: str = "transformer",
    scaling_factor: float | None = None,
    alpha: float | None = None,
) -> Path:
    """Write what is in ``source`` into the folder ``target`` in another form. Returns the file or folder to load.

    Args:
        to: ``diffusers`` or ``sat``; of a LoRA also ``peft``.
        kind: one of ``KINDS``; the part of a pipeline's folder that is meant.
        scaling_factor: of a VAE of SAT, whose files do not say it (1.15258426 for 2b, which is assumed; 0.7 for 5b).
        alpha: of a LoRA, instead of what its files say.

    Raises:
        UsageError: there is no such source or form, or the target holds something already.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    forms = _FORMS[kind]
    if to not in forms:
        raise UsageError(f"--to {to}: a {kind} has no such form.{nearest(to, forms)}")
    if not source.exists():
        raise UsageError(f"there is no {source} to convert")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} holds something already; name a new folder, or remove it")
    if kind == "lora":
        return _WRITERS[to](target, adapters.read(source, alpha=alpha))
    if kind == "vae":
        return _vae_to_sat(source, target) if to == "sat" else _vae_from_sat(source, target, scaling_factor)
    return _to_sat(source, target) if to == "sat" else _from_sat(source, target)


_WRITERS: Mapping[str, Callable[[Path, adapters.Lora], Path]] = {
    "diffusers": adapters.write_diffusers,
    "peft": adapters.write_peft,
    "sat": adapters.write_sat,
}
_FORMS: Mapping[str, tuple[str, ...]] = {
    "transformer": ("diffusers", "sat"),
    "vae": ("diffusers", "sat"),
    "lora": tuple(_WRITERS),
}


def _to_sat(source: Path, target: Path) -> Path:
    if find_sat(source) is not None:
        raise UsageError(f"{source} is in the form of SAT already")
    folder = weights.find(trained(source), part=PART)
    transformer = Transformer.from_pretrained(folder, dtype=None)
    config = transformer.config
    diffusion = _diffusion(folder, source)
    rest = _read_rest(folder)
    file = sat.write(target, sat.to_sat(transformer.state_dict(), config, rest=rest or None))
    _note(target, weights.CONFIG, config.to_json())
    if diffusion is not None:
        diffusion.save_pretrained(target)
    return file


def _from_sat(source: Path, target: Path) -> Path:
    file = find_sat(source)
    if file is None:
        raise UsageError(f"{source} is no SAT checkpoint: a folder with `latest` in it, or a .pt file, is meant")
    found = sat.read(file)
    config: TransformerConfig = sat_config(file, found)
    _, rest = sat.from_sat(found, config)
    transformer = load_transformer(file, config, dtype=None)
    _write_rest(target, rest)
    (_diffusion(file.parent.parent, file.parent) or sat_diffusion(config)).save_pretrained(target / "scheduler")
    transformer.save_pretrained(target)
    return target


def _vae_to_sat(source: Path, target: Path) -> Path:
    folder = weights.find(trained(source, part="vae"), part="vae")
    config = weights.read_config(folder, VAEConfig.from_mapping, part="vae")
    state = weights.read_weights(folder, dtype=None)
    with torch.device("meta"):
        wanted = VAE(config).state_dict()
    weights.check_names(folder, wanted=wanted, found=state)
    found = sat.vae_to_sat(state, rest=_read_rest(folder))
    target.mkdir(parents=True, exist_ok=True)
    with aside(target / SAT_VAE) as other:
        torch.save({"state_dict": found}, other)
    _note(target, weights.CONFIG, config.to_json())
    return target / SAT_VAE


def _vae_from_sat(source: Path, target: Path, scaling_factor: float | None) -> Path:
    files = [source] if source.is_file() else [*sorted(source.glob("*.pt")), *sorted(source.glob("vae/*.pt"))]
    if len(files) != 1:
        raise UsageError(f"{source} holds {len(files)} files of SAT (.pt); name that of the VAE, such as {SAT_VAE}")
    state, rest = sat.vae_from_sat(sat.read(files[0]))
    config = sat_vae_config(files[0])
    if scaling_factor is not None:
        config = _with_factor(config, scaling_factor)
    with torch.device("meta"):
        wanted = VAE(config).state_dict()
    weights.check_names(files[0].parent, wanted=wanted, found=state)
    _write_rest(target, rest)
    weights.write(target, config=config.to_json(), state=state)
    return target


def _with_factor(config: VAEConfig, factor: float) -> VAEConfig:
    if factor <= 0:
        raise UsageError(f"--scaling-factor {factor:g}: above 0 is meant, such as 0.7")
    return dataclasses.replace(config, scaling_factor=factor)


def _diffusion(*folders: Path) -> Diffusion | None:
    """The one that is stated in or beside the folders."""
    for folder in (*folders, folders[0].parent):
        if any((folder / name).is_file() for name in (SCHEDULER, f"scheduler/{SCHEDULER}")):
            return Diffusion.from_pretrained(folder)
    return None


def _read_rest(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / REST) if (folder / REST).is_file() else {}


def _write_rest(target: Path, rest: Mapping[str, Tensor]) -> None:
    """Before the weights, so that a converted model is never without it."""
    if rest:
        target.mkdir(parents=True, exist_ok=True)
        with aside(target / REST) as other:
            save_file({name: tensor.clone().contiguous() for name, tensor in rest.items()}, other)


def _note(target: Path, name: str, text: str) -> None:
    with aside(target / name) as other:
        other.write_text(text, encoding="utf-8")
