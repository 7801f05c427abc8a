"""A run: from what a user asked for to a finished table and shards. Called by ``cutroom run`` and by notebooks."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.config import load_plan
from curation.curate import Curate, bit_rates, set_up
from curation.decode import Decode
from curation.engine import Engine, EngineName, chunk, make_engine
from curation.fingerprint import Fingerprint
from curation.inputs import Inputs, find_videos
from curation.output import check_output, locked, write_run_file
from curation.plan import Plan, ShardSettings, Step
from curation.progress import Progress
from curation.ranges import DecodeRange, RangeStore, range_parts
from curation.stage import run_stage
from curation.summary import Summary, summarise
from curation.table import APART, CLIPS, FRAMES, NOT_DECODED, VIDEOS, Part, Store, without_apart
from shards.write import ShardSet

_MAX_THREADS = 8
_HASH_PARTS = 256
_VIDEOS_PER_PART, _BYTES_PER_PART = 16, 256 << 20


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
        base = state.get("base") or os.getcwd()
        # In this order: a folder that has anything has run.json, and what is removed cannot be completed any more.
        write_run_file(store, plan, base, engine, settled=len(plan.rounds) == 1)
        store.begin()
        store.create()
        started = time.monotonic()
        metrics = curate(store, plan, go, base, found, retry_failed=retry_failed, progress=progress)
        write_run_file(store, plan, base, engine, settled=True)
        if shards:
            metrics += write_shards(store, plan.shards, go, base, progress)
        return summarise(store, plan, metrics=metrics, wall_s=time.monotonic() - started, ignored=found.num_ignored)


def curate(
    store: Store,
    plan: Plan,
    engine: Engine,
    base: str,
    found: Inputs,
    *,
    retry_failed: bool = False,
    progress: Progress,
) -> collections.Counter[str]:
    """Bring the table up to date with the inputs and the plan; return the summed counters of all parts."""
    known = {row["video"]: row for row in store.videos().to_pylist()}
    same = {os.path.realpath(os.path.join(base, video)): video for video in known}
    videos = [same.get(os.path.realpath(os.path.join(base, video)), video) for video in found.videos]
    present = fingerprinted(engine, base, videos, known, progress)
    parts, others = make_parts(store, base, present)
    rounds = chains(plan, store, base, retry_failed)
    ranges = decode_long_films(store, plan, engine, base, parts, rounds[0][0], progress)
    metrics: collections.Counter[str] = collections.Counter()
    for steps in rounds:
        if whole := steps[0].whole:
            parts = over_the_whole_table(store, plan, whole, parts)
        label = whole.stage.name if whole else "curating"
        progress.begin(label, total=sum(part.videos.num_rows for part in parts))
        done = []
        for part in engine(parts, steps):
            metrics.update(part.metrics)
            progress.advance(part)
            done.append(Part(part.id, part.videos))
        parts = done
    status = {row["video_id"]: row for part in parts for row in part.videos.to_pylist()}
    ranges.end()
    for row in others:
        if row["video_id"] in status:
            original = status[row["video_id"]]
            copy_of = f"same content as {original['video']}"
            why = (
                f"{copy_of}: {original['error']}" if original["status"] == "failed" else f"{copy_of}, whose clips stand"
            )
            row.update(status=original["status"], error=why)
    # Its clips and frames have no rows; they are there so that the tables can be read even if no video is any good.
    store.write("frames", NOT_DECODED, FRAMES.empty_table())
    store.write("clips", NOT_DECODED, without_apart(plan.clip_schema.empty_table()))
    store.write("videos", NOT_DECODED, pa.Table.from_pylist(others, schema=VIDEOS))
    return metrics


def decode_long_films(
    store: Store, plan: Plan, engine: Engine, base: str, parts: list[Part], link: Curate, progress: Progress
) -> RangeStore:
    """Decode long films in ranges, which ``Curate`` then finds and puts together."""
    settings = plan.decode.stage
    assert isinstance(settings, Decode)
    ranges = RangeStore(store.root, plan)
    ranges.begin()
    divided = settings.isolate and not (settings.detector == "none" and settings.max_clip_s is None)  # into clips
    films = [
        row
        for part in parts
        if divided and range_parts(part.videos.to_pylist(), settings.grid_s)
        for row in link.undecoded(part)
    ]
    todo = range_parts(films, settings.grid_s)
    progress.begin("long films", total=len(todo))
    for part in engine(todo, [DecodeRange(plan, str(store.root), base)]):
        progress.advance(part)
    return ranges


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
        for i, rows in enumerate(chunk(unsure, min(len(unsure), _HASH_PARTS)))
    ]
    rows = []
    for part in engine(parts, [Fingerprint(base)]):
        rows += part.videos.to_pylist()
        progress.advance(part)
    return sorted([*unchanged, *rows], key=lambda row: str(row["video"]))


def make_parts(store: Store, base: str, present: list[dict[str, Any]]) -> tuple[list[Part], list[dict[str, Any]]]:
    """Divide the videos into parts: committed parts first, as they are, then new ones.

    Returns:
        The parts, and the rows of videos that need no decoder: unreadable ones and copies of others.
    """
    parts, others = committed_parts(store, base, present)
    owner = {row["video_id"]: row["video"] for part in parts for row in part.videos.to_pylist()}
    held, fresh = set(owner.values()), []
    for row in present:
        if row["video_id"] is None:
            if row["video"] not in held:
                others[row["video"]] = row
        elif row["video_id"] not in owner:
            owner[row["video_id"]] = row["video"]
            fresh.append({**row, "measured": []})
        elif owner[row["video_id"]] != row["video"]:
            others[row["video"]] = {**row, "num_clips": 0, "duration_s": None}
    for rows in divide_videos(fresh):
        ids = "".join(row["video_id"] for row in rows)
        part_id = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        parts.append(Part(part_id, pa.Table.from_pylist(rows, schema=VIDEOS)))
    return parts, [others[video] for video in sorted(others)]


def committed_parts(
    store: Store, base: str, present: list[dict[str, Any]]
) -> tuple[list[Part], dict[str, dict[str, Any]]]:
    """The parts of earlier runs, brought up to date with where their videos lie now.

    Returns:
        The parts, and the rows of earlier videos without a part that are not among the present ones.
    """
    now = {row["video"]: row["video_id"] for row in present}  # None where it cannot be read, which may pass
    by_content = {row["video_id"]: row["video"] for row in reversed(present)}
    parts, others = [], {}
    for part_id, table in store.parts("videos"):
        rows = table.to_pylist()
        if part_id == NOT_DECODED:
            others.update({row["video"]: row for row in rows if row["video"] not in now})
            continue
        for row in rows:
            video = row["video"]
            is_there = now[video] == row["video_id"] if video in now else os.path.exists(os.path.join(base, video))
            if not is_there:
                row["video"] = by_content.get(row["video_id"], row["video"])  # moved or renamed
        # A path that holds something else by now has lost its old rows.
        rows = [row for row in rows if now.get(row["video"]) in (None, row["video_id"])]
        if rows:
            parts.append(Part(part_id, pa.Table.from_pylist(rows, schema=VIDEOS)))
        else:
            store.remove(part_id)
    return parts, others


def divide_videos(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut a list of videos into parts: small ones, because what a killed run had not committed is decoded again."""
    most = max(1, min(_VIDEOS_PER_PART, len(rows) // 64))
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) >= most or sum(video["bytes"] for video in part) >= _BYTES_PER_PART:
            yield part
            part = []
    if part:
        yield part


def over_the_whole_table(store: Store, plan: Plan, step: Step, parts: list[Part]) -> list[Part]:
    """Run a stage over the clips of all parts at once; the parts come back with their clips' results."""
    apart = [name for name in step.stage.inputs if name in APART]
    columns = [name for name in step.stage.inputs if name not in ("bit_rate", *apart)]
    columns = list(dict.fromkeys(["clip_id", "video_id", "status", *columns]))
    tables = []
    for i, part in enumerate(parts):
        clips = store.read("clips", part.id, columns)
        clips = clips.append_column("bit_rate", bit_rates(clips, part.videos))
        for name in apart:
            file = store.path(APART[name], part.id)
            where = [str(file) if file.exists() else None] * clips.num_rows
            clips = clips.append_column(name, pa.array(where, pa.string()))
        tables.append(clips.append_column("part", pa.array([i] * clips.num_rows, pa.int64())))
    if not tables:
        return []
    clips = pa.concat_tables(tables).sort_by("clip_id")
    for name in ("error", "measured"):
        clips = clips.append_column(name, pa.nulls(clips.num_rows, CLIPS.field(name).type))
    set_up([step], store)
    clips = run_stage(step.stage, clips, mark=step.mark, score_rejected=plan.score_rejected)
    clips = clips.select(["part", "clip_id", "measured", *step.stage.writes.names]).sort_by("part")
    ends = np.searchsorted(clips["part"].to_numpy(), np.arange(len(parts) + 1))
    return [
        Part(part.id, part.videos, clips.slice(first, end - first).combine_chunks())
        for part, (first, end) in zip(parts, itertools.pairwise(ends), strict=True)
    ]


def chains(plan: Plan, store: Store, base: str, retry_failed: bool) -> list[list[Curate]]:
    """The links of each round: its stages in groups of equal needs, so that each link can have workers of its own."""
    rounds, all_links = plan.rounds, []
    for number, steps in enumerate(rounds):
        whole, steps = (steps[0], steps[1:]) if number else (None, steps)
        groups = [list(group) for _, group in itertools.groupby(steps, key=lambda step: step.stage.needs)]
        if not groups or groups[0][0].stage.needs != plan.decode_needs:
            groups.insert(0, [])
        output = str(store.root)
        links = [Curate(plan, group, output, base, first=False, last=False, run=store.run) for group in groups]
        links[0] = dataclasses.replace(links[0], first=not whole, whole=whole, retry_failed=retry_failed)
        links[-1] = dataclasses.replace(links[-1], last=True)
        all_links.append(links)
    return all_links


def write_shards(
    store: Store, settings: ShardSettings, engine: Engine, base: str, progress: Progress, *, thorough: bool = False
) -> collections.Counter[str]:
    """Make the shards what the table says they should be; return the summed counters.

    ``thorough`` reads shards that are there already in full before it believes them.
    """
    shard_set = ShardSet(store, settings)
    parts = shard_set.parts()
    key = shard_set.key(parts)
    if shard_set.is_done(key, parts, thorough=thorough):
        shard_set.record([part.delivered() for part in parts])  # mends what a run killed before this left out
        return collections.Counter()
    shard_set.begin(key)
    progress.begin("writing shards", total=sum(part.clips.num_rows for part in parts))
    metrics: collections.Counter[str] = collections.Counter()
    done = []
    # With few shards, each worker encodes several clips at a time; it must fit on one node.
    threads = max(1, min(_MAX_THREADS, engine.num_node_cpus(), engine.num_cpus() // max(1, len(parts))))
    for part in engine(parts, [shard_set.step(base, threads)]):
        metrics.update(part.metrics)
        done.append(part)
        progress.advance(part)
    shard_set.finish(key, done)
    shard_set.record(done)
    return metrics
