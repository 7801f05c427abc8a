"""The processes that train together, and what they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from curation.errors import UsageError

_TIMEOUT = datetime.timedelta(minutes=30)
_PATIENCE = datetime.timedelta(days=7)  # ranks encode their share, or the first one writes samples; who dies ends all


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank, size: of all processes; 0 and 1 when this one is alone.
        device: where this one computes.
        mesh: ``data`` x ``context``: ranks along ``data`` read different samples, those along ``context`` share each
            sample, a span of frames each. None when alone.
        patient: all ranks, for ``wait``.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    patient: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        return self.mesh.get_local_rank("data") if self.mesh else 0

    @property
    def data_size(self) -> int:
        return self.mesh["data"].size() if self.mesh else 1

    @property
    def context(self) -> dist.ProcessGroup | None:
        """The group that shares a sample; None where each rank has samples of its own."""
        return self.mesh.get_group("context") if self.mesh and self.mesh["context"].size() > 1 else None

    def total(self, *values: float, everywhere: bool = False) -> list[float]:
        """Each value summed over the ranks along ``data``, or over all."""
        if self.mesh is None:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed, group=None if everywhere else self.mesh.get_group("data"))
        return [float(value) for value in summed.tolist()]

    def share(self, names: str) -> bool:
        """Whether the ranks that share samples with this one were all told the same."""
        if self.context is None:
            return True
        number = int.from_bytes(hashlib.blake2b(names.encode(), digest_size=7).digest(), "big")
        bounds = torch.tensor([number, -number], device=self.device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX, group=self.context)
        return bounds.tolist() == [number, -number]

    def of_first(self, value: Any) -> Any:
        """What the first rank has."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def of_all(self, value: Any) -> list[Any]:
        """What each rank has."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held

    def wait(self) -> None:
        """Until all ranks are here, however long one works meanwhile."""
        if self.size > 1:
            dist.barrier(self.patient)

    def average_gradients(self, module: nn.Module) -> None:
        """The mean over all ranks, for a module that every rank holds whole."""
        for weight in module.parameters() if self.size > 1 else ():
            if weight.grad is not None:
                dist.all_reduce(weight.grad)
                weight.grad /= self.size


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun (or Ray Train) started with this one; nothing where there are none."""
    ours = num_processes() > 1 and not dist.is_initialized()  # Ray Train does it itself
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        if ours:
            dist.destroy_process_group()


def num_processes() -> int:
    """How many were started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_division(size: int, context_parallel: int) -> None:
    """Raises UsageError where so many processes cannot be divided into groups that share samples."""
    if size % context_parallel:
        raise UsageError(
            f"training.context_parallel {context_parallel} does not divide {size} processes: "
            f"start a multiple of it with --num-processes"
        )


def find_world(*, context_parallel: int = 1) -> World:
    """This process among those that it joined, in groups of ``context_parallel`` that share samples.

    Raises:
        UsageError: the processes cannot be divided so.
    """
    size = num_processes()
    check_division(size, context_parallel)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        return World(device=device)
    shape = (size // context_parallel, context_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "context"))
    patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return World(dist.get_rank(), size, device, mesh, patient)
