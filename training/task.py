"""What one kind of model adds to the training loop."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.settings import OptimiserSettings


@dataclass(frozen=True)
class Role:
    """A module with an optimiser of its own, such as a generator or its discriminator.

    Attributes:
        averaged: keep averaged weights of it.
        sharded: its weights are spread over the ranks (FSDP2); otherwise each rank holds it whole.
    """

    module: nn.Module
    optimiser: OptimiserSettings
    averaged: bool = True
    sharded: bool = True


class Batch(Protocol):
    """Samples that are computed together."""

    keys: Sequence[str]


class Batches(Protocol):
    """Where batches come from: each rank its own, for ever, from a place that can be stored.

    Attributes:
        num_bad: how many samples this rank could not read so far.
    """

    @property
    def num_bad(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Task(abc.ABC):
    """A model and how it learns. The loop does the rest.

    Attributes:
        roles: by name, in the order in which they learn in a step.
        config: of the model; a checkpoint of another does not fit.
    """

    roles: dict[str, Role]
    config: dict[str, Any]

    def active(self, step: int) -> Sequence[str]:
        """The roles that learn in this step."""
        return tuple(self.roles)

    @abc.abstractmethod
    def loss(self, role: str, batch: Any, *, index: int, step: int, rng: torch.Generator) -> Loss:
        """The loss of one batch.

        Args:
            role: which module learns.
            batch: as the loader gives it.
            index: of the batch within the step; the roles see the same batches one role after the other.
            step: counted from 0.
            rng: the only source of random numbers; the same for the same step and batch whatever the ranks.
        """

    @abc.abstractmethod
    def count(self, batch: Any) -> int:
        """What the losses of batches are weighed by: samples, frames or tokens."""

    def frames(self, batch: Any) -> int:
        """Frames of its videos; 0 where it has none."""
        return 0

    def flops(self, batch: Any) -> float:
        """Operations of this rank for a batch, forward and backward, of the model alone; 0 where they are not counted.

        Asked at every step, so that they are to be kept by shape. Not to be counted while training: the counter takes
        compound operations apart, which rounds otherwise.
        """
        return 0.0

    @abc.abstractmethod
    def judge(self, step: int, folder: Path) -> dict[str, float]:
        """Figures on data held out; pictures of it go into ``folder``. Every rank calls it, the first writes."""

    @abc.abstractmethod
    def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the model as diffusers would. ``weights``: of the first role, whole, on the CPU."""

    def shard(self, module: nn.Module) -> Sequence[nn.Module]:
        """The blocks whose weights are gathered one at a time when ``module`` is spread over ranks."""
        return []


@dataclass(frozen=True)
class Loss:
    """What a role is to learn from a batch.

    Attributes:
        value: a mean over the batch; where ranks share a sample, this rank's share of it: all shares add up to it.
        figures: to be reported, as means over the batch (this rank's share of them likewise).
    """

    value: Tensor
    figures: dict[str, Tensor]
