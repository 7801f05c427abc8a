"""AdamW, its learning rate over time, and averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from training.settings import OptimiserSettings


def adamw(module: nn.Module, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over the weights that learn; those with one dimension (norms, biases) without weight decay."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)


def rate_at(settings: OptimiserSettings, step: int, share: float) -> float:
    """The learning rate of a step. ``share``: of the training that is over, 0 to 1."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.schedule == "constant":
        return settings.learning_rate * warm
    fallen = settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return settings.learning_rate * warm * fallen


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
