"""Optimisers whose memory lies in the machine's memory and not on the GPU.

For weights that lie whole on one device. Where FSDP2 spreads them, its ``CPUOffloadPolicy`` does this, and more. There
is torchao's ``CPUOffloadOptimizer`` too; it changes weights before all gradients are known, so that these cannot be
clipped by their common length, and its state is none that a checkpoint of another number of ranks could take.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from training.muon import Muon

_AT_ONCE = 2**26  # numbers of weights that are changed together: 256 MiB for each thing remembered of them


class Offloaded(torch.optim.Optimizer):
    """Mixed into an optimiser: fetches what it remembers for a few weights at a time, and puts it back.

    Every weight is changed as without it, to the bit. Scalars, which optimisers keep on the CPU anyway, stay there.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change the weights that have a gradient."""
        whole = [group["params"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["params"] = []
            for group, weights in zip(self.param_groups, whole, strict=True):
                for few in _portions(weights):
                    group["params"] = few
                    self._fetch(few)
                    super().step()
                    self._put_back(few)
                group["params"] = []
        finally:
            for group, weights in zip(self.param_groups, whole, strict=True):
                group["params"] = weights

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would take all of it to the weights' device."""
        super().load_state_dict({**state_dict, "state": {}})
        named = [name for group in state_dict["param_groups"] for name in group["params"]]  # numbers, or DCP's names
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for name, weight in zip(named, weights, strict=True):
            if name in state_dict["state"]:
                self.state[weight] = {key: _home(value) for key, value in state_dict["state"][name].items()}

    def _fetch(self, weights: list[Tensor]) -> None:
        for weight in weights:
            for name, value in self.state[weight].items() if weight in self.state else ():
                if _is_large(value):
                    self.state[weight][name] = value.to(weight.device)

    def _put_back(self, weights: list[Tensor]) -> None:
        for weight in weights:
            for name, value in self.state[weight].items() if weight in self.state else ():
                self.state[weight][name] = _home(value)


class OffloadedAdamW(Offloaded, torch.optim.AdamW):
    """AdamW."""


class OffloadedMuon(Offloaded, Muon):
    """Muon."""


def _portions(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """In their order, so many numbers at a time; a larger weight by itself."""
    few, numbers = list[Tensor](), 0
    for weight in weights:
        if few and numbers + weight.numel() > _AT_ONCE:
            yield few
            few, numbers = [], 0
        few.append(weight)
        numbers += weight.numel()
    if few:
        yield few


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _home(value: Any) -> Any:
    """A tensor in the machine's memory; from a GPU, in memory that it reads quickly."""
    if not _is_large(value) or value.device.type == "cpu":
        return value
    return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)
