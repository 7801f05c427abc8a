"""LoRA: what was learned beside a transformer's weights, in the three forms in which it is passed on.

    lora = read(folder)                  # of peft, of diffusers or of SAT; which of them is seen by its names
    add(transformer, lora, scale=0.8)    # W + scale * alpha / rank * B A
    write_diffusers(folder, lora)        # what ``CogVideoXPipeline.load_lora_weights`` opens

Nothing is computed between the forms: tensors are renamed. SAT's weights do not say their alpha; SAT's own default is
1, and a ``lora.json`` that was written beside them wins over it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from curation.errors import UsageError
from curation.files import aside
from training import weights
from training.transformer import sat

DIFFUSERS = "pytorch_lora_weights.safetensors"
PEFT, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAT_CONFIG = "lora.json"
_METADATA = "lora_adapter_metadata"
_PREFIXES = ("base_model.model.", "transformer.")
_NAME = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight$")
_SAT_NAME = re.compile(r"transformer\.layers\.(?P<i>\d+)\.(?P<module>.+)\.matrix_(?P<part>[AB])\.(?P<place>\d)$")
_SAT: Mapping[str, tuple[str, ...]] = {
    "attention.query_key_value": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention.dense": ("attn1.to_out.0",),
    "mlp.dense_h_to_4h": ("ff.net.0.proj",),
    "mlp.dense_4h_to_h": ("ff.net.2",),
}


@dataclasses.dataclass(frozen=True)
class Lora:
    """By the name of a layer: ``a`` (rank, in), ``b`` (out, rank), and ``alphas``, that the product is weighed with."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    alphas: Mapping[str, float]

    def rank(self, module: str) -> int:
        return len(self.a[module])

    def config(self) -> dict[str, Any]:
        """The fields of peft's ``LoraConfig`` that say all of this."""
        ranks = {module: self.rank(module) for module in self.a}
        rank, alpha = _commonest(ranks.values()), _commonest(self.alphas.values())
        return {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted(ranks),
            "rank_pattern": {module: value for module, value in sorted(ranks.items()) if value != rank},
            "alpha_pattern": {module: value for module, value in sorted(self.alphas.items()) if value != alpha},
        }

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor by its name in peft, behind ``prefix``."""
        named: dict[str, Tensor] = {}
        for module in self.a:
            named[f"{prefix}{module}.lora_A.weight"] = self.a[module].contiguous()
            named[f"{prefix}{module}.lora_B.weight"] = self.b[module].contiguous()
        return named


def _commonest(values: Any) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def read(source: str | Path, *, alpha: float | None = None) -> Lora:
    """The LoRA in a folder or file of peft, diffusers or SAT.

    Args:
        alpha: instead of what the file says. Where it says none it is 1 in SAT, and the rank elsewhere.

    Raises:
        UsageError: there is none, it is damaged, or it is of a kind that is not built (DoRA, rank-stabilised).
    """
    file = find(source)
    if file.suffix == ".pt":
        return _read_sat(file, alpha)
    try:
        with safe_open(file, framework="pt") as held:
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - it is no mapping
            said = json.loads((held.metadata() or {}).get(_METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}); copy it again") from error
    config = {name.removeprefix("transformer."): value for name, value in said.items()}
    beside = file.with_name(PEFT_CONFIG)
    if not config and file.name == PEFT and beside.is_file():
        config = weights.read_json(beside)
    for kind in ("use_dora", "use_rslora"):
        if config.get(kind):
            raise UsageError(f"{file} was trained with {kind}, which is not built; plain LoRA is")
    parts: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = _NAME.match(_bare(name))
        if match is None:
            raise UsageError(
                f"{file} holds {name!r}, which is no LoRA of a linear layer (…lora_A.weight, …lora_B.weight)"
            )
        parts[match["part"]][match["module"]] = tensor
    return _built(file, parts, config, alpha=alpha, without=None)


def find(source: str | Path) -> Path:
    """The file of a LoRA: ``source``, or one in it (or in its ``weights/lora``, where training leaves it)."""
    place = Path(source).expanduser()
    if place.is_file():
        return place
    for folder in (place, place / "lora", place / "weights" / "lora"):
        for name in (DIFFUSERS, PEFT):
            if (folder / name).is_file():
                return folder / name
        if (folder / "latest").is_file():
            return sat_file(folder)
    raise UsageError(f"no LoRA in {place}; expected {DIFFUSERS}, {PEFT}, or a SAT checkpoint")


def sat_file(folder: Path) -> Path:
    """The weights in the folder of a SAT checkpoint, by its file ``latest``; UsageError if it names none."""
    step = (folder / "latest").read_text(encoding="utf-8").strip()
    file = folder / step / "mp_rank_00_model_states.pt"
    if Path(step).name != step or not file.is_file():
        raise UsageError(f"{folder / 'latest'} names {step!r}, and there is no {file}; copy it there")
    return file


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _read_sat(file: Path, alpha: float | None) -> Lora:
    parts: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in sat.read(file).items():
        match = _SAT_NAME.search(name)
        if match is None:
            continue  # the weights that the LoRA was trained beside
        ours = _SAT.get(match["module"])
        if ours is None or int(match["place"]) >= len(ours):
            raise UsageError(f"{file} holds {name!r}, a LoRA of no layer that is known ({', '.join(_SAT)})")
        module = f"transformer_blocks.{match['i']}.{ours[int(match['place'])]}"
        parts[match["part"]][module] = tensor.clone()
    found = [each / SAT_CONFIG for each in (file.parent, file.parent.parent) if (each / SAT_CONFIG).is_file()]
    config = weights.read_json(found[0]) if found else {}
    return _built(file, parts, config, alpha=alpha, without=1.0)


def _built(
    file: Path,
    parts: dict[str, dict[str, Tensor]],
    config: Mapping[str, Any],
    *,
    alpha: float | None,
    without: float | None,
) -> Lora:
    """``without`` is the alpha where nothing says one; None: the rank, so that the product is taken as it is."""
    a, b = parts["A"], parts["B"]
    if not a or a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise UsageError(f"{file} holds " + (f"only one part of the LoRA of {odd[0]}" if odd else "no LoRA"))
    alphas = {}
    for module in a:
        if len(a[module]) != b[module].shape[-1]:
            raise UsageError(f"{file}: the ranks of the two parts of {module} differ; it is damaged")
        said = _pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", without))
        chosen = alpha if alpha is not None else said
        alphas[module] = float(len(a[module]) if chosen is None else chosen)
    return Lora(dict(sorted(a.items())), dict(sorted(b.items())), alphas)


def _pattern(pattern: Mapping[str, float], module: str, otherwise: float | None) -> float | None:
    """What peft's patterns say: whole names, or their last parts."""
    for name, value in pattern.items():
        if module == name or module.endswith("." + name):
            return value
    return otherwise


@torch.no_grad()
def add(transformer: nn.Module, lora: Lora, *, scale: float = 1.0) -> None:
    """Put a LoRA into the weights of a transformer, in place, summed in fp32.

    Raises:
        UsageError: it is of another transformer.
    """
    parameters = dict(transformer.named_parameters())
    for module in lora.a:
        weight = parameters.get(f"{module}.weight")
        shape = (len(lora.b[module]), lora.a[module].shape[1])
        if weight is None or tuple(weight.shape) != shape:
            has = "no such layer" if weight is None else f"{tuple(weight.shape)} there"
            raise UsageError(f"the LoRA is of another transformer: it has {module} of {shape}, this one has {has}")
        factor = scale * lora.alphas[module] / lora.rank(module)
        product = lora.b[module].to(weight.device).float() @ lora.a[module].to(weight.device).float()
        weight.copy_((weight.float() + factor * product).to(weight.dtype))


def write_diffusers(folder: str | Path, lora: Lora) -> Path:
    """Write what ``CogVideoXPipeline.load_lora_weights`` opens, alpha included."""
    said = {f"transformer.{name}": value for name, value in lora.config().items()}
    metadata = {"format": "pt", _METADATA: json.dumps(said, indent=2, sort_keys=True)}
    return _write(Path(folder, DIFFUSERS), lora.tensors("transformer."), metadata)


def write_peft(folder: str | Path, lora: Lora) -> Path:
    """Write what ``PeftModel.from_pretrained`` opens."""
    file = _write(Path(folder, PEFT), lora.tensors("base_model.model."), {"format": "pt"})
    config = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **lora.config()}
    with aside(file.with_name(PEFT_CONFIG)) as other:
        other.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return file


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as other:
        save_file(tensors, other, metadata=metadata)
    return file


def write_sat(folder: str | Path, lora: Lora) -> Path:
    """Write a folder that SAT loads beside its base, and ``lora.json``, whose r and lora_alpha its YAML must state.

    Raises:
        UsageError: a layer that SAT has no LoRA for, or query, key and value not all three.
    """
    places = {ours: (name, at) for name, parts in _SAT.items() for at, ours in enumerate(parts)}
    named: dict[str, Tensor] = {}
    for module in lora.a:
        match = re.match(r"transformer_blocks\.(\d+)\.(.+)$", module)
        if match is None or match[2] not in places:
            raise UsageError(f"SAT has no LoRA for {module}; only for {', '.join(places)} of the blocks")
        name, place = places[match[2]]
        absent = [part for part in _SAT[name] if f"transformer_blocks.{match[1]}.{part}" not in lora.a]
        if absent:
            raise UsageError(f"SAT joins {', '.join(_SAT[name])}, and this LoRA has none for {', '.join(absent)}")
        stem = f"{sat.PREFIX}transformer.layers.{match[1]}.{name}.matrix"
        named[f"{stem}_A.{place}"], named[f"{stem}_B.{place}"] = lora.a[module], lora.b[module]
    file = sat.write(folder, named)
    with aside(Path(folder, SAT_CONFIG)) as other:
        other.write_text(json.dumps(lora.config(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return file
