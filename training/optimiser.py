"""AdamW and Muon, their learning rate over time, and averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from training.muon import Muon
from training.settings import OptimiserSettings

_NOT_FOR_MUON = ("conv_in", "conv_out", "embed", "proj_out", "norm_out")  # what is next to pixels, texts and latents


def optimisers(module: nn.Module, settings: OptimiserSettings, *, offload: bool = False) -> list[torch.optim.Optimizer]:
    """AdamW over the weights that learn, and Muon over matrices and convolutions where the settings want it.

    Weights with one dimension (norms, biases) have no weight decay. Each group notes its highest learning rate. With
    ``offload`` what they remember lies in the machine's memory.
    """
    from training import offload as offloaded

    adam = offloaded.OffloadedAdamW if offload else torch.optim.AdamW
    muon = offloaded.OffloadedMuon if offload else Muon
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    found: list[torch.optim.Optimizer] = []
    if settings.muon is not None:
        matrices = {
            name: weight
            for name, weight in weights.items()
            if weight.dim() > 1 and not any(part in name for part in _NOT_FOR_MUON)
        }
        found.append(muon(list(matrices.values()), lr=settings.muon, weight_decay=settings.weight_decay))
        weights = {name: weight for name, weight in weights.items() if name not in matrices}
    groups = [
        {"params": [w for w in weights.values() if w.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights.values() if w.dim() <= 1], "weight_decay": 0.0},
    ]
    if filled := [group for group in groups if group["params"]]:  # Muon may have all: those of LoRA are matrices
        found.append(adam(filled, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps))
    return found


def factor_at(settings: OptimiserSettings, step: int, share: float) -> float:
    """The learning rate of a step, in highest ones. ``share``: of the training that is over, 0 to 1."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.schedule == "constant":
        return warm
    return warm * (settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class Average:
    """An exponential moving average of a module's weights: the ones to judge, sample with and keep.

    The average of the first steps forgets faster (as ``(1 + n) / (10 + n)``), so that it does not hang on to the
    random beginning. Weights that are spread over ranks are averaged where they lie.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.num_updates = 0
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, weight in self._module.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(weight.detach(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._module.named_parameters():
            if name in self.weights:
                average = self.weights[name]
                kept = weight.detach().clone()
                weight.copy_(average)
                average.copy_(kept)
