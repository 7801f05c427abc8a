"""AdamW and Muon, their learning rate over time, and averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from training.settings import OptimiserSettings

_TOGETHER = 2**22  # numbers of small matrices that Muon turns together: one by one they cost little but overhead
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
    filled = [group for group in groups if group["params"]]
    found.append(adam(filled, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps))
    return found


def factor_at(settings: OptimiserSettings, step: int, share: float) -> float:
    """The learning rate of a step, in highest ones. ``share``: of the training that is over, 0 to 1."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.schedule == "constant":
        return warm
    return warm * (settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class Muon(torch.optim.Optimizer):
    """The momentum of a matrix's gradient, made orthogonal (Jordan et al. 2024, "Muon"), for weights of any shape.

    PyTorch's takes matrices only; here a convolution (out, in, ...) is the matrix of its outputs. Of weights that are
    spread over ranks every rank makes the whole update and keeps its part.
    """

    def __init__(self, weights: list[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change the weights that have a gradient."""
        for group in self.param_groups:
            for weights in _alike([weight for weight in group["params"] if weight.grad is not None]):
                wanted = torch.stack([self._wanted(weight, group["momentum"]) for weight in weights])
                for weight, update in zip(weights, orthogonal(wanted), strict=True):
                    turned = update.reshape(weight.shape)
                    if isinstance(weight, DTensor):
                        turned = distribute_tensor(turned, weight.device_mesh, weight.placements, src_data_rank=None)
                    rows, columns = update.shape
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(turned, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _wanted(self, weight: Tensor, momentum: float) -> Tensor:
        """The whole matrix (out, everything else) of the gradient and what is remembered of earlier ones."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum)  # looks ahead (Nesterov)
        return (update.full_tensor() if isinstance(update, DTensor) else update).flatten(1)


def _alike(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Weights whose matrices are of one shape, so many at a time."""
    groups: dict[tuple[int, int], list[Tensor]] = {}
    for weight in weights:
        groups.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
    for (rows, columns), group in groups.items():
        size = max(1, _TOGETHER // (rows * columns))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices (..., M, N) whose singular values are about 1, by a quintic Newton-Schulz iteration.

    Its coefficients are Jordan's: five steps bring all singular values above a few thousandths to between 0.7 and 1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


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
