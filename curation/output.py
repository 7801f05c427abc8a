"""An output directory: whose it is, what was asked for last, who is writing to it; and files that are asked for."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock

from curation.errors import UsageError
from curation.files import LEFTOVERS, aside
from curation.plan import Plan
from curation.table import Store

RUN_FILE = "run.json"
_VERSIONED = ("cutroom", "av", "opencv-python", "scenedetect", "ray", "pyarrow", "webdataset", "numpy")


def check_output(output: Path, pipeline: str) -> dict[str, Any]:
    """What ``run.json`` of an earlier run says; empty for a new directory.

    Raises:
        UsageError: the path is a file, someone else's folder, or holds another pipeline's result.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; name a folder")
    state = read_run_file(output)
    if state is None:
        if output.is_dir() and any(path.name != ".lock" and not path.match(LEFTOVERS) for path in output.iterdir()):
            raise UsageError(f"--output {output} holds other files and no {RUN_FILE}; name a new or empty folder")
        return {}
    if state["pipeline"] != pipeline:
        raise UsageError(
            f"--output {output} holds the result of pipeline {state['pipeline']!r}, not {pipeline!r}; "
            f"run {state['pipeline']!r} again or name another folder"
        )
    return state


def check_file(place: Path, option: str) -> None:
    """Make sure, before any work, that a file can be written.

    Raises:
        UsageError: it cannot, or something else is there. The message names ``option``.
    """
    try:
        if not place.absolute().parent.is_dir() or (place.exists() and not place.is_file()):
            raise UsageError(f"{place}: {option} is meant to be a file in a folder that exists")
        with tempfile.TemporaryFile(dir=place.absolute().parent):  # permissions alone tell root nothing
            pass
    except OSError as error:
        raise UsageError(f"{place} cannot be written ({error.strerror}); name another file with {option}") from error


def read_run_file(output: Path) -> dict[str, Any] | None:
    """The content of ``run.json``, or None where there is none."""
    try:
        state: Any = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UsageError(f"{output / RUN_FILE} cannot be read ({error}); restore it or name another folder") from error
    if not isinstance(state, dict) or not {"pipeline", "base", "keep", "shards"} <= state.keys():
        raise UsageError(f"{output / RUN_FILE} cannot be read: a run wrote other things; restore it")
    return state


def write_run_file(store: Store, plan: Plan, base: str, engine: str, *, settled: bool) -> None:
    """Record what decides the result: the resolved pipeline and the versions at work.

    ``settled``: false while clips of the table are kept that a stage over the whole table may still reject.
    """
    versions = {}
    for package in _VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    content = {**plan.resolved(), "base": base, "engine": engine, "settled": settled, "versions": versions}
    with aside(store.root / RUN_FILE) as file:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep two runs out of one directory. The system frees the lock when the process ends, however it ends."""
    lock = filelock.FileLock(output / ".lock")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"another run is writing to {output}; wait for it or name another folder") from None
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
