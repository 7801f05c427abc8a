"""What a run has come to, from its tables: the funnel, the reasons, the scores."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.output import read_run_file
from curation.plan import Plan
from curation.rules import Rule
from curation.table import CAPTIONS, CLEANED, CLIPS, SHARDED, Store, caption_of, failed_stage
from shards.write import STAGE as DELIVERY
from shards.write import read_index


@dataclasses.dataclass
class Summary:
    """Counts and hours of one output directory. Hours are of footage."""

    output: str
    pipeline: str
    videos: dict[str, int]  # in, done, failed
    video_errors: dict[str, str]  # video -> reason, failed and damaged ones
    num_shots: int
    clips: dict[str, int]  # kept, rejected, failed
    hours: dict[str, float]  # in, kept, rejected, failed
    rejected_by: dict[str, int]  # rule -> clips
    failed_by: dict[str, int]  # stage -> clips
    num_captioned: int
    num_waiting: int  # failed clips that the next run tries again
    waiting_for: str | None  # the error of the first of them
    failed_with: str | None  # the commonest error of the other failed clips
    num_failed_with: int  # that have it
    asks_for_captions: bool  # a model is asked to write them
    shards: dict[str, int]  # shards, samples, bytes
    rules: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    wall_s: float = 0.0
    num_ignored: int = 0

    @property
    def num_lost(self) -> int:
        """Accepted clips that could not be delivered into shards."""
        return self.failed_by.get(DELIVERY, 0)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def summarise(
    store: Store,
    plan: Plan | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    wall_s: float = 0.0,
    ignored: int = 0,
) -> Summary:
    """Count a directory's tables, one part at a time."""
    videos, errors, shots = collections.Counter[str](), {}, 0
    hours: collections.defaultdict[str, float] = collections.defaultdict(float)
    for _, table in store.parts("videos"):
        for row in table.to_pylist():
            videos[row["status"]] += 1
            shots += row["num_shots"] or 0
            hours["in"] += (row["duration_s"] or 0.0) / 3600
            if row["error"]:
                errors[row["video"]] = row["error"]
    clips, rejected, failed, captioned = (collections.Counter[str]() for _ in range(4))
    columns = ["status", "reason", "error", "measured", "duration_s", "caption", *CLEANED.names]
    waiting: list[str] = []
    reasons = collections.Counter[str]()
    for _, table in store.parts("clips", columns):
        for row in table.to_pylist():
            clips[row["status"]] += 1
            hours[row["status"]] += row["duration_s"] / 3600
            rejected[row["reason"]] += row["status"] == "rejected"
            failed[failed_stage(row["error"] or "")] += row["status"] == "failed"
            if row["status"] == "failed" and _is_waiting(row):
                waiting.append(row["error"])
            elif row["status"] == "failed":
                reasons[row["error"]] += 1
            captioned["kept"] += row["status"] == "kept" and caption_of(row) is not None
    state = plan.resolved() if plan else read_run_file(store.root) or {}
    commonest, times = next(iter(reasons.most_common(1)), (None, 0))
    return Summary(
        output=_as_typed(store.root),
        pipeline=state["pipeline"],
        videos={"in": videos.total(), "done": videos["done"], "failed": videos["failed"]},
        video_errors=dict(sorted(errors.items())),
        num_shots=shots,
        clips={status: clips[status] for status in ("kept", "rejected", "failed")},
        hours={name: hours[name] for name in ("in", "kept", "rejected", "failed")},
        rejected_by=dict((+rejected).most_common()),
        failed_by=dict((+failed).most_common()),
        num_captioned=captioned["kept"],
        num_waiting=len(waiting),
        waiting_for=waiting[0] if waiting else None,
        failed_with=commonest,
        num_failed_with=times,
        asks_for_captions=any(stage["name"] == "caption" for stage in state.get("stages", ())),
        shards=_count_shards(store.root / "shards"),
        rules={column: str(Rule(**rule)) for column, rule in state["keep"].items()},
        metrics=dict(metrics or {}),
        wall_s=wall_s,
        num_ignored=ignored,
    )


def _is_waiting(row: dict[str, Any]) -> bool:
    """Whether the stage that failed left no mark, because another time it may succeed."""
    by = failed_stage(row["error"])
    return by != DELIVERY and by not in {mark.partition("@")[0] for mark in row["measured"]}


def _as_typed(folder: Path) -> str:
    """Relative to the current folder where it lies below it, so that printed commands can be used as they are."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _count_shards(folder: Path) -> dict[str, int]:
    shards = read_index(folder).get("shardlist", [])
    return {
        "shards": len(shards),
        "samples": sum(shard["nsamples"] for shard in shards),
        "bytes": sum(shard["filesize"] for shard in shards),
    }


def score_table(store: Store) -> dict[str, dict[str, float | None]]:
    """Quantiles of every numeric score: min, p05, p50, p95, max, and how many clips have none."""
    known = {*CLIPS.names, *CAPTIONS.names, *SHARDED.names}
    values: dict[str, list[np.ndarray[Any, Any]]] = {}
    for _, table in store.parts("clips"):
        for field in table.schema:
            is_number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
            if field.name not in known and is_number:
                values.setdefault(field.name, []).append(table[field.name].to_numpy())
    result: dict[str, dict[str, float | None]] = {}
    for name, chunks in values.items():
        scores = np.concatenate(chunks)
        measured = scores[~np.isnan(scores)]
        quantiles = np.quantile(measured, [0, 0.05, 0.5, 0.95, 1]).tolist() if len(measured) else [None] * 5
        result[name] = dict(zip(("min", "p05", "p50", "p95", "max"), quantiles, strict=True))
        result[name]["unknown"] = len(scores) - len(measured)
    return result
