"""A run: from what a user asked for to a finished table and shards. Called by ``cutroom run`` and by notebooks."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from curation.config import load_plan
from curation.curate import Curate
from curation.engine import Engine, EngineName, chunk, default_num_parts, make_engine
from curation.errors import UsageError
from curation.fingerprint import Fingerprint
from curation.inputs import Inputs, find_videos
from curation.plan import Plan, ShardSettings
from curation.progress import Progress
from curation.summary import Summary, summarise
from curation.table import CLIPS, NOT_DECODED, VIDEOS, Part, Store, conform
from shards.write import ShardSet

RUN_FILE = "run.json"
_MAX_THREADS = 8
_VERSIONED = ("cutroom", "av", "opencv-python", "scenedetect", "ray", "pyarrow", "webdataset", "numpy")


def run(
    pipeline: str,
    inputs: Sequence[str],
    output: str | os.PathLike[str],
    *,
    config: str | None = None,
    engine: EngineName = "ray",
    address: str | None = None,
    shards: bool = True,
    limit: int | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Curate footage into a clip table and shards; the same call again continues where the last one ended.

    Args:
        pipeline: a name in ``config``.
        inputs: files, folders, globs or lists of paths.
        output: where the tables and shards go; a new folder or that of an earlier run of the same pipeline.
        config: a YAML file of pipelines; None is the one that comes with Cutroom.
        engine: ``ray`` or ``local`` (this process).
        address: of a Ray cluster; None starts a Ray on this machine.
        shards: False stops at the table.
        limit: use only the first so many videos, by name.
        retry_failed: decode failed videos and measure failed clips again.
        progress: where to report; None is silent.

    Raises:
        UsageError: the request is wrong. Nothing has been changed.
    """
    plan = load_plan(pipeline, config)
    output = Path(output)
    state = check_output(output, pipeline)
    found = find_videos(inputs, base=state.get("base"))
    found = found._replace(videos=found.videos[:limit])
    go = make_engine(engine, address=address)
    with locked(output), progress or Progress(quiet=True) as progress:
        store = Store(output)
        store.create()
        base = state.get("base") or os.getcwd()
        write_run_file(store, plan, base, engine)
        started = time.monotonic()
        metrics = curate(store, plan, go, base, found, retry_failed=retry_failed, progress=progress)
        if shards:
            for name, value in write_shards(store, plan.shards, go, base, progress).items():
                metrics[name] = metrics.get(name, 0) + value
        return summarise(store, plan, metrics=metrics, wall_s=time.monotonic() - started, ignored=found.num_ignored)


def check_output(output: Path, pipeline: str) -> dict[str, Any]:
    """What ``run.json`` of an earlier run says; empty for a new directory.

    Raises:
        UsageError: the path is a file, someone else's folder, or holds another pipeline's result.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; name a folder")
    state = read_run_file(output)
    if state is None:
        if output.is_dir() and any(path.name != ".lock" for path in output.iterdir()):
            raise UsageError(f"--output {output} holds other files and no {RUN_FILE}; name a new or empty folder")
        return {}
    if state["pipeline"] != pipeline:
        raise UsageError(
            f"--output {output} holds the result of pipeline {state['pipeline']!r}, not {pipeline!r}; "
            f"run {state['pipeline']!r} again or name another folder"
        )
    return state


def read_run_file(output: Path) -> dict[str, Any] | None:
    """The content of ``run.json``, or None where there is none."""
    try:
        state: dict[str, Any] = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UsageError(f"{output / RUN_FILE} cannot be read ({error}); restore it or name another folder") from error
    return state


def write_run_file(store: Store, plan: Plan, base: str, engine: str) -> None:
    """Record what decides the result: the resolved pipeline and the versions at work."""
    versions = {}
    for package in _VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    content = {**plan.resolved(), "base": base, "engine": engine, "versions": versions}
    aside = store.root / f"{RUN_FILE}.tmp"
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(aside, store.root / RUN_FILE)


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep two runs out of one directory. The system frees the lock when the process ends, however it ends."""
    output.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"another run is writing to {output}; wait for it or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def curate(
    store: Store,
    plan: Plan,
    engine: Engine,
    base: str,
    found: Inputs,
    *,
    retry_failed: bool = False,
    progress: Progress,
) -> dict[str, float]:
    """Bring the table up to date with the inputs and the plan; return the summed counters of all parts."""
    known = {row["video"]: row for row in store.videos().to_pylist()}
    present = fingerprinted(engine, base, found.videos, known, progress)
    parts, others = make_parts(store, present)
    steps = chain(plan, str(store.root), base, retry_failed)
    metrics: dict[str, float] = {}
    status: dict[str, dict[str, Any]] = {}
    progress.begin("curating", total=sum(part.videos.num_rows for part in parts))
    for part in engine(parts, steps):
        for name, value in part.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        status.update(zip(part.videos["video_id"].to_pylist(), part.videos.to_pylist(), strict=True))
        progress.advance(part)
    for row in others:
        if row["video_id"] in status:
            original = status[row["video_id"]]
            copy_of = f"same content as {original['video']}"
            why = (
                f"{copy_of}: {original['error']}" if original["status"] == "failed" else f"{copy_of}, whose clips stand"
            )
            row.update(status=original["status"], error=why)
    store.write("videos", NOT_DECODED, pa.Table.from_pylist(others, schema=VIDEOS))
    return metrics


def fingerprinted(
    engine: Engine, base: str, videos: list[str], known: dict[str, dict[str, Any]], progress: Progress
) -> list[dict[str, Any]]:
    """The video rows of the inputs, with ``video_id`` or with the reason why they cannot be read."""
    unchanged, unsure = [], []
    for video in videos:
        row = known.get(video)
        try:
            stat = os.stat(os.path.join(base, video))
            same = row is not None and (row["bytes"], row["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        except OSError:
            same = False
        if same and row is not None and row["video_id"]:
            unchanged.append(row)
        else:
            unsure.append({"video": video})
    progress.begin("fingerprinting", total=len(unsure))
    parts = [
        Part(f"{i:06d}", pa.Table.from_pylist(list(rows), schema=VIDEOS))
        for i, rows in enumerate(chunk(unsure, default_num_parts(len(unsure))))
    ]
    rows = []
    for part in engine(parts, [Fingerprint(base)]):
        rows += part.videos.to_pylist()
        progress.advance(part)
    return sorted([*unchanged, *rows], key=lambda row: str(row["video"]))


def make_parts(store: Store, present: list[dict[str, Any]]) -> tuple[list[Part], list[dict[str, Any]]]:
    """Divide the videos into parts: committed parts first, as they are, then new ones.

    Returns:
        The parts, and the rows of videos that need no decoder: unreadable ones and copies of others.
    """
    now = {row["video"]: row["video_id"] for row in present}
    parts, owner = [], {}
    others = {}
    for part_id, table in store.parts("videos"):
        rows = table.to_pylist()
        if part_id == NOT_DECODED:
            others.update({row["video"]: row for row in rows if row["video"] not in now})
            continue
        # A path that holds something else by now has lost its old rows.
        rows = [row for row in rows if now.get(row["video"], row["video_id"]) == row["video_id"]]
        owner.update({row["video_id"]: row["video"] for row in rows})
        if rows:
            parts.append(Part(part_id, conform(pa.Table.from_pylist(rows, schema=VIDEOS), VIDEOS)))
        else:
            store.remove(part_id)
    fresh = []
    for row in present:
        if row["video_id"] is None:
            others[row["video"]] = row
        elif row["video_id"] not in owner:
            owner[row["video_id"]] = row["video"]
            fresh.append({**row, "measured": []})
        elif owner[row["video_id"]] != row["video"]:
            others[row["video"]] = {**row, "num_clips": 0}
    for rows in chunk(fresh, default_num_parts(len(fresh))):
        ids = "".join(row["video_id"] for row in rows)
        part_id = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        parts.append(Part(part_id, pa.Table.from_pylist(list(rows), schema=VIDEOS), CLIPS.empty_table()))
    return parts, [others[video] for video in sorted(others)]


def chain(plan: Plan, output: str, base: str, retry_failed: bool) -> list[Curate]:
    """Group the stages into links of equal needs, so that each link can have workers of its own."""
    groups = [list(group) for _, group in itertools.groupby(plan.later, key=lambda step: step.stage.needs)]
    if not groups or groups[0][0].stage.needs != plan.decode.stage.needs:
        groups.insert(0, [])
    last = len(groups) - 1
    return [
        Curate(plan, group, output, base, first=i == 0, last=i == last, retry_failed=retry_failed)
        for i, group in enumerate(groups)
    ]


def write_shards(
    store: Store, settings: ShardSettings, engine: Engine, base: str, progress: Progress
) -> dict[str, float]:
    """Make the shards what the table says they should be; return the summed counters."""
    shard_set = ShardSet(store, settings)
    parts = shard_set.parts()
    key = shard_set.key(parts)
    if shard_set.is_done(key, parts):
        return {}
    shard_set.begin(key)
    progress.begin("writing shards", total=sum(part.clips.num_rows for part in parts))
    metrics: dict[str, float] = {}
    done = []
    # With few shards, each worker encodes several clips at a time; it must fit on one node.
    threads = max(1, min(_MAX_THREADS, engine.num_node_cpus(), engine.num_cpus() // max(1, len(parts))))
    for part in engine(parts, [shard_set.step(base, threads)]):
        for name, value in part.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        done.append(part)
        progress.advance(part)
    shard_set.finish(key, done)
    shard_set.record(done)
    return metrics
