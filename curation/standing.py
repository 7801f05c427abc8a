"""Which results of earlier runs still stand: a stage's marks, and failures that wait for their stage to come again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from curation.plan import Plan, Step
from curation.stage import Stage
from curation.table import CLIPS, conform, extend, failed_stage, without_marks


def reset(clip: dict[str, Any], video: str, plan: Plan, *, retry_failed: bool) -> dict[str, Any]:
    """A stored row as this run starts from it: only marks of this plan count, and rules are judged afresh.

    A failure stands only while the stage that failed would do the same again. It waits in ``error`` until that
    stage's turn comes (``fail_again``): until then the clip is as good as any. Those of decoding stand at once.
    """
    marks = {step.mark: step.stage for step in plan.steps}
    standing = {part for step in plan.steps for part in step.parts}
    measured = [mark for mark in clip["measured"] if mark in marks or mark in standing]
    error = clip["error"]
    if error is not None:
        by = failed_stage(error)
        again = [mark for mark in measured if mark in marks and marks[mark].name == by and marks[mark].cached]
        if retry_failed or not again:
            measured = without_marks(measured, {by})
            error = None
    later = {step.stage.name for step in plan.later}
    status = "failed" if error and failed_stage(error) not in later else "kept"
    row = {**clip, "video": video, "measured": measured, "error": error, "status": status, "reason": None}
    _forget(row, plan.later)
    return row


def forget_unmarked(clips: pa.Table, steps: Sequence[Step]) -> pa.Table:
    """Clips without the results of those of these stages whose mark they do not carry: they are of other settings."""
    if all(step.mark in marks for marks in clips["measured"].to_pylist() for step in steps):
        return clips
    rows = clips.to_pylist()
    for row in rows:
        _forget(row, steps)
    return pa.Table.from_pylist(rows, schema=clips.schema)


def _forget(row: dict[str, Any], steps: Sequence[Step]) -> None:
    for step in steps:
        if step.mark not in row["measured"]:  # else old results are left under the name of new settings
            known = {name for part, columns in step.parts.items() if part in row["measured"] for name in columns}
            row.update(dict.fromkeys(name for name in step.stage.writes.names if name not in known))


def carry_over(new: pa.Table, old: pa.Table, plan: Plan) -> pa.Table:
    """Give freshly decoded clips the results of later stages that clips of the same span had before."""
    schema = plan.clip_schema
    dense = extend(CLIPS, *(step.stage.writes for step in (plan.decode, *plan.dense))).names
    earlier = {row["clip_id"]: row for row in old.to_pylist()}
    fresh_names = {step.stage.name for step in (plan.decode, *plan.dense)}
    rows = conform(new, schema).to_pylist()
    for row in rows:
        before = earlier.get(row["clip_id"])
        if before is None:
            continue
        row.update({name: before[name] for name in schema.names if name not in dense})
        row["measured"] += without_marks(before["measured"], fresh_names)
        if before["error"] and not row["error"] and failed_stage(before["error"]) not in fresh_names:
            row["error"] = before["error"]  # it waits for its stage
    return pa.Table.from_pylist(rows, schema=schema)


def fail_again(clips: pa.Table, stage: str) -> pa.Table:
    """Bring back the failures that waited for this stage; a clip that is rejected by now would not have failed."""
    rows = clips.to_pylist()
    for row in rows:
        if row["status"] == "failed" or failed_stage(row["error"] or "") != stage:
            continue
        if row["status"] == "kept":
            row["status"] = "failed"
        else:
            row.update(error=None, measured=without_marks(row["measured"], {stage}))
    return pa.Table.from_pylist(rows, schema=clips.schema)


def drop_outdated(before: pa.Table, after: pa.Table, step: Step, plan: Plan) -> pa.Table:
    """Where a stage that is not cached says something new of a clip, forget what later stages made of the old."""
    names = step.stage.writes.names
    pairs = zip(before.select(names).to_pylist(), after.select(names).to_pylist(), strict=True)
    changed = [{name for name in names if not _same(was[name], now[name])} for was, now in pairs]
    outdated = [{stage.name: stage for stage in _readers(plan, step, columns)} for columns in changed]
    measured = after["measured"].to_pylist()
    if all(without_marks(marks, stages) == marks for marks, stages in zip(measured, outdated, strict=True)):
        return after
    rows = after.to_pylist()
    for row, stages in zip(rows, outdated, strict=True):
        row["measured"] = without_marks(row["measured"], stages)
        row.update({name: None for stage in stages.values() for name in stage.writes.names})
        if failed_stage(row["error"] or "") in stages:  # it waits for its stage
            row["error"] = None
    return pa.Table.from_pylist(rows, schema=after.schema)


def is_open(row: dict[str, Any], step: Step) -> bool:
    """Whether a stage has not come to a clip yet, or has to try again."""
    failed_here = failed_stage(row["error"] or "") == step.stage.name
    return failed_here or (row["status"] == "kept" and step.mark not in row["measured"])


def _readers(plan: Plan, step: Step, columns: set[str]) -> list[Stage]:
    """The stages behind ``step`` whose results rest on these columns of it, as they are or as others read them.

    Those that are not cached run again anyway, and then it shows whether they say something new.
    """
    behind = plan.steps[[known.mark for known in plan.steps].index(step.mark) + 1 :]
    found = []
    for stage in (later.stage for later in behind if later.stage.cached):
        if columns & set(stage.inputs):
            columns = columns | set(stage.writes.names)
            found.append(stage)
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal; NaN is NaN."""
    return bool(one == other or (one != one and other != other))
