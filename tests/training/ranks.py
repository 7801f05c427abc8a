"""Running a function in several processes that train together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns on each of ``count`` ranks, which are joined by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(count, folder, work, arguments), nprocs=count)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(count)]


def _rank(rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import os

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.save(work(*arguments), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
