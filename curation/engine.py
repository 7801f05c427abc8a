"""Two ways to run the same steps over parts: in this process, or on Ray Data.

A step is a callable ``Part -> Part`` with ``needs`` and ``setup()``. Both engines give a step whole parts and yield
finished parts in whatever order they finish; nothing else may depend on the engine.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import pyarrow as pa

from curation.errors import CutroomError, UsageError, one_line
from curation.stage import Needs
from curation.table import Part

_STARTS = 3  # of Ray, on a machine that is too busy for it

EngineName = Literal["ray", "local"]


class PartStep(Protocol):
    """What an engine runs: made in the driver, set up once in each worker, called for each part, closed at the end."""

    @property
    def needs(self) -> Needs: ...
    def setup(self) -> None: ...
    def __call__(self, part: Part) -> Part: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """Runs steps over parts."""

    def num_cpus(self) -> int:
        """CPUs of all nodes together."""

    def num_node_cpus(self) -> int:
        """CPUs of the largest node: the most that one worker can have."""

    def __call__(self, parts: Sequence[Part], steps: Sequence[PartStep]) -> Iterator[Part]:
        """Put every part through all steps; yield each as it is done, in any order."""


def make_engine(name: EngineName, *, address: str | None = None) -> Engine:
    """``local`` runs in this process without Ray; ``ray`` on the cluster at ``address`` or on a Ray of its own."""
    if name == "local":
        if address is not None:
            raise UsageError(f"--address {address} needs --engine ray")
        return LocalEngine()
    return RayEngine(address)


class LocalEngine:
    """Everything in this process, part after part."""

    def num_cpus(self) -> int:
        return os.cpu_count() or 1

    num_node_cpus = num_cpus

    def __call__(self, parts: Sequence[Part], steps: Sequence[PartStep]) -> Iterator[Part]:
        if not parts:
            return
        with contextlib.ExitStack() as started:
            for step in steps:
                step.setup()
                started.callback(step.close)
            for part in parts:
                for step in steps:
                    part = step(part)
                yield part


class RayEngine:
    """Ray Data: one actor pool per step, parts stream through them."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        _probe(address)

    def num_cpus(self) -> int:
        self._connect()
        import ray

        return int(ray.cluster_resources().get("CPU", 1))

    def num_node_cpus(self) -> int:
        return int(max(node.get("CPU", 0) for node in self._nodes()))

    def _nodes(self) -> list[dict[str, float]]:
        self._connect()
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def _check_fits(self, needs: Needs) -> None:
        """A worker that fits on no node would be waited for without end."""
        wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_bytes}
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in self._nodes()):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
            raise UsageError(f"a stage needs workers with {asked}, and no node of the Ray cluster has as much")

    def __call__(self, parts: Sequence[Part], steps: Sequence[PartStep]) -> Iterator[Part]:
        if not parts:
            return
        cpus = self.num_cpus()
        import ray.data

        rows = [pa.Table.from_pylist([{**part.to_row(), "failure": ""}]) for part in parts]
        dataset: ray.data.Dataset = ray.data.from_arrow(rows)
        # Every pool starts with one worker; if these want more than there is, the last never starts.
        share = min(1.0, cpus / max(1e-9, sum(step.needs.cpus for step in steps)))
        for step in steps:
            self._check_fits(step.needs)
            dataset = dataset.map_batches(
                _Worker,
                fn_constructor_args=(step,),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=step.needs.cpus * share,
                num_gpus=step.needs.gpus or None,
                memory=step.needs.memory_bytes or None,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_pool_size(cpus, step.needs, len(parts))),
            )
        for row in dataset.iter_rows():
            if row["failure"]:
                raise CutroomError(row["failure"])
            yield Part.from_row(row)

    def _connect(self) -> None:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else warnings about Ray's own doings reach users
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the same for workers without a GPU
        with _muted():
            import ray

            if ray.is_initialized():
                return
        local: dict[str, Any] = {} if self.address else {"include_dashboard": False}
        for attempt in range(1, _STARTS + 1):
            try:
                with _muted():
                    ray.init(address=self.address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
                break
            except ConnectionError as error:
                raise UsageError(f"--address {self.address}: no Ray cluster answers there ({error})") from error
            except Exception as error:  # it waits for its own processes for 30 s, which a busy machine may outlast
                ray.shutdown()
                if attempt == _STARTS:
                    raise CutroomError(
                        f"Ray cannot be started ({one_line(error)}): try again when less runs here, or --engine local"
                    ) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = 0
        logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep what Ray's C++ side says while starting off the terminal; its Python errors are raised all the same."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _probe(address: str | None) -> None:
    """Knock at the cluster's door: Ray itself would wait for minutes before it says that nobody is there."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there ({error})") from error


def _pool_size(cpus: int, needs: Needs, num_parts: int) -> int:
    most = int(cpus / needs.cpus) if needs.cpus else num_parts
    return max(1, min(num_parts, most, needs.max_workers or num_parts))


class _Worker:
    """A step inside a Ray actor."""

    def __init__(self, step: PartStep) -> None:
        self._step, self._failure = step, ""
        try:
            step.setup()
        except CutroomError as error:
            self._failure = f"{type(error).__name__}: {error}"

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._run(row) for row in batch.to_pylist()])

    def _run(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["failure"] or self._failure:
            return {**row, "failure": row["failure"] or self._failure}
        try:
            return {**self._step(Part.from_row(row)).to_row(), "failure": ""}
        except CutroomError as error:
            # Ray would bury it under its own traces and lose its type.
            return {**row, "failure": f"{type(error).__name__}: {error}"}


def chunk(items: Sequence[Any], num_chunks: int) -> Iterable[Sequence[Any]]:
    """Divide a sequence into ``num_chunks`` runs of nearly equal length."""
    bounds = [round(i * len(items) / max(1, num_chunks)) for i in range(num_chunks + 1)]
    return (items[low:high] for low, high in itertools.pairwise(bounds) if high > low)
