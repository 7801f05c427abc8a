"""Muon, for the models that are trained here and for captioners that are tuned.

PyTorch's iterates in bfloat16 whatever the weights are of. On processors without its instructions a step of a small
captioner took it 3.0 s of 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

_TOGETHER = 2**22  # numbers of small matrices that are turned together: one by one they cost little but overhead


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
