"""A model and data so small that every number of a training can be checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.settings import OptimiserSettings
from training.task import Loss, Role, Task


@dataclass
class ToyBatch:
    keys: list[str]
    x: Tensor


@dataclass
class ToyBatches:
    """Batches of ``size`` numbered samples for ever; rank ``r`` of ``world`` reads batches r, r + world, ..."""

    size: int = 4
    rank: int = 0
    world: int = 1
    read: int = 0
    seen: list[str] = field(default_factory=list)
    num_bad: int = 0

    def __iter__(self) -> Iterator[ToyBatch]:
        while True:
            number = self.read * self.world + self.rank
            self.read += 1
            ids = range(number * self.size, (number + 1) * self.size)
            self.seen += [str(i) for i in ids]
            rows = [torch.randn(6, generator=torch.Generator().manual_seed(i)) for i in ids]
            yield ToyBatch([str(i) for i in ids], torch.stack(rows))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.read * self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.read = state["batches"] // self.world


class ToyTask(Task):
    """Learns to add up numbers, with noise from ``rng`` and dropout, so that both must be the same after a resume."""

    def __init__(self, *, dropout: float = 0.1, noise: float = 0.1, optimiser: OptimiserSettings | None = None) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 1))
        like = optimiser or OptimiserSettings(learning_rate=1e-2, warmup_steps=2, schedule="constant")
        self.roles = {"model": Role(self.model, like)}
        self.config = {"widths": (8, 1)}
        self._noise = noise
        self.poison: set[int] = set()  # steps whose loss is no number

    def count(self, batch: ToyBatch) -> int:
        return len(batch.keys)

    def loss(self, role: str, batch: ToyBatch, *, index: int, step: int, rng: torch.Generator) -> Loss:
        target = batch.x.sum(dim=1) + self._noise * torch.randn(len(batch.x), generator=rng)
        value = (self.model(batch.x)[:, 0] - target).square().mean()
        if step in self.poison:
            value = value * torch.nan
        return Loss(value, {"loss": value})

    def judge(self, step: int, folder: Path) -> dict[str, float]:
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(10**6)).to(self.model[0].weight.dtype)
        return {"error": float((self.model(x)[:, 0] - x.sum(dim=1)).square().mean())}

    def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
