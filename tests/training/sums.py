"""Sums over ranks, done plainly: what the ranks' shares of a loss and of its gradients add up to."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def mean_share(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's share of the mean over all ranks' ``values``."""
    return values.sum() / total(torch.tensor(values.numel()), group)


def total(share: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of a value over the ranks, without gradient."""
    result = share.detach().clone()
    dist.all_reduce(result, group=group)
    return result


def sum_gradients(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace each parameter's gradient, or its shard on this rank, by its sum over the ranks of the group."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            dist.all_reduce(grad.to_local() if isinstance(grad, DTensor) else grad, group=group)
