"""Starting the processes that train together: on this machine by torchrun, on a cluster by Ray Train."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from curation.errors import UsageError

_LOOKED_AHEAD = "CUTROOM_LOOKED_AHEAD"  # set for processes whose parent has said what is read
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent ends


def on_this_machine(arguments: Sequence[str], *, num_processes: int) -> int:
    """Run ``cutroom ARGUMENTS`` in so many processes that know of each other. Returns the exit status.

    What will be read has been looked at by this one, see ``has_looked_ahead``.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [*launcher, "-m", "curation.cli", *arguments]
    environment = {**os.environ, _LOOKED_AHEAD: "1"}
    return subprocess.run(command, check=False, env=environment, preexec_fn=_end_with_parent).returncode  # noqa: S603 - no shell, our own program, and no threads


def _end_with_parent() -> None:
    """Have torchrun end its processes when this one is killed; else they would train on, unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def on_ray(
    work: Callable[[dict[str, Any]], None], request: dict[str, Any], *, num_workers: int, address: str | None
) -> None:
    """Call ``work(request)`` on so many workers of a Ray cluster that know of each other, with a GPU each where it has.

    Every node must see the same files under the same names.

    Raises:
        UsageError: the cluster has not as many GPUs, if it has any, or CPUs.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address=address or "local", log_to_driver=True)
    try:
        there = ray.cluster_resources()
        kind = "GPU" if there.get("GPU") else "CPU"
        if num_workers > there.get(kind, 0):
            raise UsageError(f"--num-processes {num_workers}: the cluster has {there.get(kind, 0):.0f} {kind}s")
        scaling = ScalingConfig(num_workers=num_workers, use_gpu=kind == "GPU")
        # Weights and states that lie off the GPU meanwhile are gathered by gloo.
        backend = TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo")
        TorchTrainer(
            work,
            train_loop_config=request,
            torch_config=backend,
            scaling_config=scaling,
            run_config=RunConfig(name="cutroom"),
        ).fit()
    finally:
        ray.shutdown()


def has_looked_ahead() -> bool:
    """Whether the process that started this one has looked at what the training will read."""
    return _LOOKED_AHEAD in os.environ


def is_first() -> bool:
    """Whether this process is to speak: the first of those that train together, or alone."""
    return os.environ.get("RANK", "0") == "0"
