"""Low-rank additions to frozen layers (LoRA, arXiv 2106.09685), under the names that peft and diffusers give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from curation.errors import UsageError
from training.transformer.adapters import Lora, write_diffusers
from training.transformer.model import Transformer

_PARTS = (".lora_A.weight", ".lora_B.weight")


class LoraLinear(nn.Linear):
    """A linear layer that keeps its own weights under their names, and adds ``scale * B(A(x))``."""

    def __init__(self, layer: nn.Linear, *, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = layer.in_features, layer.out_features, scale
        self.weight, self.bias = layer.weight, layer.bias
        device, dtype = layer.weight.device, layer.weight.dtype
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False, device=device, dtype=dtype)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False, device=device, dtype=dtype)
        nn.init.zeros_(self.lora_B.weight)  # at first nothing is added

    def forward(self, input: Tensor) -> Tensor:
        added: Tensor = self.lora_B(self.lora_A(input))
        return functional.linear(input, self.weight, self.bias) + self.scale * added


def add_lora(
    transformer: Transformer, *, rank: int, alpha: float | None = None, targets: Sequence[str]
) -> dict[str, float]:
    """Freeze ``transformer`` and put additions into the layers whose names end in one of ``targets``. In place.

    Returns:
        The scale of each addition, by the layer's name.

    Raises:
        UsageError: no layer has such a name.
    """
    if rank < 1:
        raise UsageError(f"model.lora.rank {rank}: 1 or more is meant")
    transformer.requires_grad_(False)
    scale = 1.0 if alpha is None else alpha / rank
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    for target in targets:
        if not any(_is(name, target) for name in linear):
            ends = sorted({name.split(".", 2)[-1] for name in linear if name.startswith("transformer_blocks.")})
            raise UsageError(f"model.lora.targets: no layer is called {target!r}; there are {', '.join(ends)}")
    found = [name for name in linear if any(_is(name, target) for target in targets)]
    for name in found:
        parent, _, own = name.rpartition(".")
        setattr(transformer.get_submodule(parent), own, LoraLinear(linear[name], rank=rank, scale=scale))
    return dict.fromkeys(found, scale)


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def write_lora(folder: Path, *, state: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
    """Write the additions for ``load_lora_weights`` of diffusers; other tensors of ``state`` are left out.

    See ``adapters.write_diffusers``; ``cutroom sample --lora`` and ``cutroom convert`` read it too.
    """
    a, b = ({layer: state[layer + part].detach().cpu() for layer in scales} for part in _PARTS)
    alphas = {layer: scale * len(a[layer]) for layer, scale in scales.items()}
    write_diffusers(folder, Lora(a, b, alphas))


def merged(state: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The weights of a plain transformer that gives what layers and additions give together."""
    whole = {name: tensor for name, tensor in state.items() if not name.endswith(_PARTS)}
    for layer, scale in scales.items():
        a, b = (state[layer + part].double() for part in _PARTS)
        name = f"{layer}.weight"
        whole[name] = (whole[name].double() + scale * (b @ a)).to(whole[name].dtype)
    return whole
