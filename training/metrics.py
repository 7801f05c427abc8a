"""Figures of a training: to the console, OUT/metrics.jsonl, TensorBoard and, when asked for, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curation.errors import UsageError
from curation.files import aside

METRICS = "metrics.jsonl"
HELD_OUT = "held_out_"  # begins the names of figures on data held out
_SHOWN = ("loss", "psnr", "frames_per_s", "data_wait")
# Dense bfloat16 products per second, from the makers' data sheets; for the share of a GPU that is used (MFU).
_PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "L40S": 362e12, "A100": 312e12, "4090": 165e12}


class Metrics:
    """Where figures go. Only the first rank has one that writes."""

    def __init__(self, folder: Path, *, step: int, say: Callable[[str], None], wandb: str | None = None) -> None:
        self._say, self._path = say, folder / METRICS
        rows = _forget_after(self._path, step)
        self.judged = any(row["step"] == step and any(name.startswith(HELD_OUT) for name in row) for row in rows)
        """Whether the step that the training begins with has been judged already."""
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._wandb: Any = None
        if wandb is not None:
            import wandb as client

            self._wandb = client.init(project=wandb, dir=str(folder), id=_run_id(folder), resume="allow")

    def log(self, step: int, figures: dict[str, float | None]) -> None:
        """Store the figures of a step. A figure that is not known is null."""
        known = {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")
        for name, value in known.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)
        shown = [name for name in known if name in _SHOWN or name.startswith(HELD_OUT)]
        self._say(f"step {step}: " + ", ".join(f"{name} {_short(known[name])}" for name in shown))

    def close(self) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb(project: str | None) -> None:
    """Raises UsageError where figures are to go to Weights & Biases and its package is not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UsageError(f"training.wandb {project!r} needs the package wandb, not installed here: pip install wandb")


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that was in use: of the GPU since the start, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that the device could do in bfloat16, or None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


class Stopwatch:
    """Time since the last look."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return passed


def _forget_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Steps after the checkpoint will be done, and logged, again. Returns the rows of those before."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    kept = [row for row in rows if row["step"] <= step]
    with aside(path) as other:
        other.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
    return kept


def _run_id(folder: Path) -> str:
    """The same for the same folder, so that a continued training continues its curves."""
    path = folder / "wandb-id"
    if not path.exists():
        import secrets

        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
