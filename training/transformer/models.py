"""The models that make samples: where they lie, whatever form they have, and getting them onto the device.

    places = find(Sources(model="cogvideox-5b"))     # everything that can be wrong is said here
    models = load(places, dtype="bf16", device=torch.device("cuda"))
    with models.using(models.transformer) as transformer: ...

A model is a folder of diffusers (a whole pipeline, or a transformer alone), an id of one on the Hugging Face hub, what
our training wrote, or a checkpoint of SAT.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from curation.devices import find_device
from curation.errors import UsageError, nearest
from curation.model_files import identity, is_path
from training import weights
from training.folders import last_weights
from training.pretrained import fetch
from training.transformer import adapters, sat
from training.transformer.config import SIZES, TransformerConfig
from training.transformer.diffusion import FILE as SCHEDULER
from training.transformer.diffusion import Diffusion
from training.transformer.model import PART, Transformer
from training.vae import config as vae_config
from training.vae.config import VAEConfig
from training.vae.model import VAE

Module = TypeVar("Module", bound=nn.Module)

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,
}
"""``int8`` is the transformer's linear layers with weights of 8 bits (by torchao); all else is bf16 then."""

SAT_VAE = "3d-vae.pt"
SAT_EPS = 1e-6  # of SAT's layer norms
_SHIFT_HELP = "the shift of the signal-to-noise ratio (3 for 2b, 1 for 5b)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """What a user names.

    Attributes:
        model: a folder, a hub id, or a SAT checkpoint.
        vae, text_encoder: others than the model brings; a VAE may be SAT's ``.pt`` too.
        loras: each with its scale, added to the transformer in this order.
        snr_shift: instead of what the model's scheduler says; needed where it has none.
    """

    model: str
    vae: str | None = None
    text_encoder: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    snr_shift: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where the parts lie, and their configurations. ``transformer`` and ``vae`` are folders, or files of SAT."""

    transformer: Path
    config: TransformerConfig
    vae: Path
    vae_config: VAEConfig
    text: str | None
    diffusion: Diffusion
    loras: tuple[tuple[str, float], ...] = ()

    def identities(self) -> dict[str, Any]:
        """Names and digests of what is in the files, wherever they lie."""
        named: dict[str, Any] = {
            "transformer": identity(str(self.transformer), weights.CONFIG, "*.safetensors"),
            "vae": identity(str(self.vae), weights.CONFIG, "*.safetensors"),
            "diffusion": dataclasses.asdict(self.diffusion),
        }
        if self.text is not None:
            files = ("*.json", "*.safetensors", "*.model", "t*/*.json", "t*/*.safetensors", "t*/*.model")
            named["text_encoder"] = identity(self.text, *files)
        if self.loras:
            named["loras"] = [[identity(str(adapters.find(source))), scale] for source, scale in self.loras]
        return named


def find(sources: Sources, *, needs_text: bool = True) -> Places:
    """Find every part and read its configuration; weights are read by ``load``.

    Raises:
        UsageError: a part is not there, or parts do not fit each other. The message says which and what to do.
    """
    root = _root(sources.model, "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    file, config = _transformer(root)
    if sources.vae is not None:
        vae, shape = _vae(_root(sources.vae, "vae"), config)
    else:
        vae, shape = _vae(root, config)
    if shape.latent_channels != config.out_channels:
        raise UsageError(
            f"the VAE in {vae} has {shape.latent_channels} latent channels, and the transformer in {file} makes "
            f"{config.out_channels}: they do not belong together"
        )
    for source, _ in sources.loras:
        adapters.find(source)
    text = sources.text_encoder
    if text is None and all(Path(root, part).is_dir() for part in ("tokenizer", "text_encoder")):
        text = str(root)
    if text is None and needs_text:
        raise UsageError(
            f"{sources.model} brings no text encoder: name one with --text-encoder (a pipeline's folder, or the id of "
            "a T5 on the hub), or give texts as --embeddings"
        )
    if text is not None and is_path(text) and not Path(text).exists():
        raise UsageError(f"there is no folder {text} to load a text encoder from")
    return Places(
        transformer=file,
        config=config,
        vae=vae,
        vae_config=shape,
        text=text,
        diffusion=_diffusion(sources, root, file, config),
        loras=sources.loras,
    )


def _root(source: str, *parts: str) -> Path:
    """The folder (or file of SAT) of a model: as given, what training left in it, or from the hub, downloaded once."""
    if not is_path(source):
        return fetch(source, *parts)
    root = Path(source).expanduser()
    if not root.exists():
        raise UsageError(f"there is no {source}: give a folder, or ORGANISATION/NAME on the Hugging Face hub")
    return trained(root)


def trained(root: Path, *, part: str = PART) -> Path:
    """The weights that training left in the folder ``root``, of the last stage where it had some; else ``root``."""
    if not root.is_dir() or (root / weights.CONFIG).is_file() or (root / part).is_dir():
        return root
    return last_weights(root) or root


def find_sat(root: Path) -> Path | None:
    """The file of SAT's weights that ``root`` is, or holds; None if it is nothing of SAT."""
    if root.suffix == ".pt":
        return root
    for folder in (root, root / PART):
        if (folder / "latest").is_file():
            return adapters.sat_file(folder)
    return None


def sat_config(file: Path, names: Mapping[str, torch.Tensor]) -> TransformerConfig:
    """The configuration of SAT's weights: from the ``config.json`` that we write beside them, else by their shapes."""
    for folder in (file.parent, file.parent.parent):
        if (folder / weights.CONFIG).is_file():
            return weights.read_config(folder, TransformerConfig.from_mapping, part=PART)
    return dataclasses.replace(SIZES[sat.size_of(names)], norm_eps=SAT_EPS)


def _transformer(root: Path) -> tuple[Path, TransformerConfig]:
    if (file := find_sat(root)) is not None:
        return file, sat_config(file, sat.read(file))
    if (root / adapters.DIFFUSERS).is_file() or (root / adapters.PEFT).is_file():
        raise UsageError(f"{root} holds a LoRA: name its base as --model, and this as --lora")
    folder = weights.find(root, part=PART)
    config = weights.read_config(folder, TransformerConfig.from_mapping, part=PART)
    if not any(folder.glob("*.safetensors")):
        weights.read_weights(folder, dtype=None)  # says what is missing
    return folder, config


def _vae(root: Path, config: TransformerConfig) -> tuple[Path, VAEConfig]:
    """Folder, or file of SAT, and configuration of the VAE in ``root``."""
    files = [root] if root.suffix == ".pt" else [*sorted(root.glob("vae/*.pt")), *root.glob(SAT_VAE)]
    if files:
        return files[0], sat_vae_config(files[0], config)
    try:
        folder = weights.find(root, part="vae")
        shape = weights.read_config(folder, VAEConfig.from_mapping, part="vae")
    except UsageError as error:
        raise UsageError(f"{root} brings no VAE: name one with --vae ({error})") from error
    if not any(folder.glob("*.safetensors")):
        weights.read_weights(folder, dtype=torch.float32)  # says what is missing
    return folder, shape


def sat_vae_config(file: Path, config: TransformerConfig | None = None) -> VAEConfig:
    """Of SAT's VAE: from a ``config.json`` beside it, else the published one.

    SAT keeps the scaling factor with the transformer: 1.15258426 for 2b (the default here), 0.7 for 5b and 1.5.
    """
    if (file.parent / weights.CONFIG).is_file():
        return weights.read_config(file.parent, VAEConfig.from_mapping, part="vae")
    if config is None or not config.use_rotary_positional_embeddings:
        return vae_config.size("full")
    inverts = config.patch_size_t is not None
    return dataclasses.replace(vae_config.size("full"), scaling_factor=0.7, invert_scale_latents=inverts)


def _diffusion(sources: Sources, root: Path, file: Path, config: TransformerConfig) -> Diffusion:
    if sources.snr_shift is not None:
        if sources.snr_shift <= 0:
            raise UsageError(f"--snr-shift {sources.snr_shift:g}: {_SHIFT_HELP} is above 0")
        return Diffusion(snr_shift_scale=sources.snr_shift)
    folders = [root, file, file.parent, file.parent.parent]
    for folder in folders:
        if any(Path(folder, name).is_file() for name in (SCHEDULER, f"scheduler/{SCHEDULER}")):
            return Diffusion.from_pretrained(folder)
    if file.suffix == ".pt":
        return sat_diffusion(config)
    raise UsageError(f"{root} has no scheduler/{SCHEDULER}: state {_SHIFT_HELP} with --snr-shift")


def sat_diffusion(config: TransformerConfig) -> Diffusion:
    """What SAT's configurations state for the models it was published with."""
    return Diffusion(snr_shift_scale=1.0 if config.use_rotary_positional_embeddings else 3.0)


@dataclasses.dataclass
class Models:
    """Transformer and VAE, ready to make samples. With ``offload`` each is on the device only while it is ``using``."""

    transformer: Transformer
    vae: VAE
    diffusion: Diffusion
    device: torch.device
    offload: bool = False

    @contextlib.contextmanager
    def using(self, module: Module) -> Iterator[Module]:
        """The module on the device."""
        module.to(self.device)
        try:
            yield module
        finally:
            if self.offload:
                module.to("cpu")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


def choose(dtype: str | None, device: str | None) -> tuple[str, torch.device]:
    """The precision and the device that are asked for; by default a GPU where there is one, and bf16 on it, else fp32.

    Raises:
        UsageError: there is no such, or a package is missing for it.
    """
    chosen = find_device(device)
    dtype = dtype or ("bf16" if chosen.type == "cuda" else "fp32")
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    if dtype == "int8":
        import importlib.util

        if importlib.util.find_spec("torchao") is None:
            raise UsageError("--dtype int8 needs torchao, not installed here: pip install torchao")
    return dtype, chosen


def load(places: Places, *, dtype: str, device: torch.device, offload: bool = False) -> Models:
    """Read the weights of transformer and VAE, in ``dtype`` (see ``DTYPES``), LoRAs added."""
    precision = DTYPES[dtype]
    transformer = load_transformer(places.transformer, places.config, dtype=None if places.loras else precision)
    for source, scale in places.loras:
        adapters.add(transformer, adapters.read(source), scale=scale)
    transformer.to(precision)
    if dtype == "int8":
        _quantise(transformer)
    models = Models(
        transformer=transformer,
        vae=load_vae(places.vae, places.vae_config, dtype=precision),
        diffusion=places.diffusion,
        device=device,
        offload=offload,
    )
    if not offload:
        models.transformer.to(device)
        models.vae.to(device)
    return models


def load_transformer(place: Path, config: TransformerConfig, *, dtype: torch.dtype | None) -> Transformer:
    """A transformer from its folder, or from a file of SAT; ``dtype`` None keeps that of the file."""
    if place.suffix != ".pt":
        return Transformer.from_pretrained(place, dtype=dtype)
    state, _ = sat.from_sat(sat.read(place), config)
    with torch.device("meta"):
        transformer = Transformer(config)
    state = {name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()}
    weights.check_names(place, wanted=transformer.state_dict(), found=state)
    transformer.load_state_dict(state, assign=True)
    return transformer.eval()


def load_vae(place: Path, config: VAEConfig, *, dtype: torch.dtype) -> VAE:
    """A VAE from its folder, or from a file of SAT."""
    if place.suffix != ".pt":
        return VAE.from_pretrained(place, dtype=dtype)
    state, _ = sat.vae_from_sat(sat.read(place))
    with torch.device("meta"):
        vae = VAE(config)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    weights.check_names(place, wanted=vae.state_dict(), found=state)
    vae.load_state_dict(state, assign=True)
    return vae.eval()


def _quantise(transformer: Transformer) -> None:
    """Weights of the linear layers to 8 bits, in place; products are made in bf16."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(transformer, Int8WeightOnlyConfig())
