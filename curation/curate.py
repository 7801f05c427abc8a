"""The step that does the work of a run: decode what is new, measure what is missing, judge, commit.

It resumes by itself: a video is decoded only if its row does not carry the decode stage's mark, a stage runs only on
clips that do not carry its mark, and rules are judged afresh every time.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.decode import Decode, Decoded, decode_video, failed
from curation.errors import StageError
from curation.frames import SHEET
from curation.isolate import Isolated
from curation.plan import Plan, Step
from curation.rules import judge
from curation.stage import Needs, run_stage
from curation.table import CLIPS, VIDEOS, Part, Store, conform, extend

DELIVERY = "shards"  # errors of this stage are cleared on the next run: the clip itself is sound


@dataclasses.dataclass
class Curate:
    """One link of the chain from videos to committed parts; links differ in what their workers need.

    Args:
        plan: the whole pipeline.
        steps: the stages of ``plan.later`` that this link runs.
        output: the output directory.
        base: relative video names are relative to this folder.
        first: load the part and decode; last: commit.
        retry_failed: try failed videos and clips again.
    """

    plan: Plan
    steps: list[Step]
    output: str
    base: str
    first: bool = True
    last: bool = True
    retry_failed: bool = False

    @property
    def needs(self) -> Needs:
        return self.steps[0].stage.needs if self.steps else self.plan.decode.stage.needs

    def setup(self) -> None:
        self._store = Store(self.output)
        self._decode = self.plan.decode.stage
        assert isinstance(self._decode, Decode)
        isolate = self.first and self._decode.isolate
        self._child = Isolated(stall_s=self._decode.stall_s) if isolate else None
        for step in [*(self.plan.dense if self.first else []), *self.steps]:
            step.stage.setup()

    def __call__(self, part: Part) -> Part:
        if self.first:
            part = self._decode_missing(self._load(part))
        for step in self.steps:
            part = self._measure(part, step)
        if self.last:
            part = self._commit(part)
        return part

    def close(self) -> None:
        """End the decoder's process."""
        if self._child:
            self._child.close()

    def _load(self, part: Part) -> Part:
        """Bring in what was committed for this part earlier. ``part.videos`` names the videos it shall hold now."""
        schema = self.plan.clip_schema
        if not self._store.path("videos", part.id).exists():
            part.clips = schema.empty_table()
            return part
        wanted = set(part.videos["video_id"].to_pylist())
        stored = conform(self._store.read("clips", part.id), schema).to_pylist()
        clips = [clip for clip in stored if clip["video_id"] in wanted]
        if len(clips) < len(stored):
            self._load_sheets(part)
            part.add("sheets_changed", 1)
        for clip in clips:
            retry = clip["error"] is not None and (self.retry_failed or clip["error"].startswith(f"{DELIVERY}:"))
            if retry:
                stage = clip["error"].partition(":")[0]
                clip["measured"] = [mark for mark in clip["measured"] if not mark.startswith(f"{stage}@")]
                clip["error"] = None
            clip["status"], clip["reason"] = ("failed" if clip["error"] else "kept"), None
        part.clips = pa.Table.from_pylist(clips, schema=schema)
        return part

    def _load_sheets(self, part: Part) -> None:
        """Contact sheets are large and seldom needed again, so they are read only on demand."""
        if part.frames.num_rows == 0 and self._store.path("frames", part.id).exists():
            wanted = set(part.videos["video_id"].to_pylist())
            part.frames = select(self._store.read("frames", part.id), wanted)

    def _decode_missing(self, part: Part) -> Part:
        """Decode the videos that were not, or whose clips lack a score that only decoding can give."""
        before = part.clips
        done = []
        for row in part.videos.to_pylist():
            clips = before.filter(pc.equal(before["video_id"], row["video_id"]))
            if not self._is_decoded(row, clips):
                self._load_sheets(part)
                decoded = self._decode_one(row)
                part.add("videos_decoded", 1)
                part.add("frames_decoded", decoded.video["num_frames"] or 0)
                part.add("sheets_changed", 1)
                clips = carry_over(decoded.clips, clips, self.plan)
                others = select(part.frames, set(part.videos["video_id"].to_pylist()) - {row["video_id"]})
                part.frames = pa.concat_tables([others, decoded.frames])
                row = decoded.video
            done.append((row, clips))
        part.videos = pa.Table.from_pylist([row for row, _ in done], schema=VIDEOS)
        part.clips = pa.concat_tables([clips for _, clips in done] or [self.plan.clip_schema.empty_table()])
        for step in (self.plan.decode, *self.plan.dense):
            part.clips = judge(part.clips, step.rules)
        return part

    def _is_decoded(self, row: dict[str, Any], clips: pa.Table) -> bool:
        if self.plan.decode.mark not in (row["measured"] or []):
            return False
        if row["status"] == "failed":
            return not self.retry_failed
        for step in (self.plan.decode, *self.plan.dense):
            rows = zip(clips["status"].to_pylist(), clips["measured"].to_pylist(), strict=True)
            active = ("kept", "rejected") if self.plan.score_rejected else ("kept",)
            if any(status in active and step.mark not in marks for status, marks in rows):
                return False
            clips = judge(clips, step.rules)
        return True

    def _decode_one(self, row: dict[str, Any]) -> Decoded:
        path = os.path.join(self.base, row["video"])
        arguments = (path, row, self.plan.decode, self.plan.dense, self.plan.score_rejected)
        try:
            return self._child.call(decode_video, *arguments) if self._child else decode_video(*arguments)
        except StageError:
            raise
        except Exception as error:  # whatever one file does, it costs only that file
            return failed(row, error, self.plan.decode.mark)

    def _measure(self, part: Part, step: Step) -> Part:
        """Run one stage, giving it the derived columns that it reads."""
        clips = part.clips
        wants = set(step.stage.inputs)
        if "video_path" in wants:
            paths = [os.path.join(self.base, video) for video in clips["video"].to_pylist()]
            clips = clips.append_column("video_path", pa.array(paths, pa.string()))
        if "frames" in wants:
            self._load_sheets(part)
            clips = clips.append_column("frames", attach_sheets(clips["clip_id"], part.frames))
        clips = run_stage(step.stage, clips, mark=step.mark, score_rejected=self.plan.score_rejected)
        part.clips = judge(conform(clips, self.plan.clip_schema), step.rules)
        return part

    def _commit(self, part: Part) -> Part:
        """Write what changed and pass on only what the summary needs."""
        part.clips = part.clips.replace_schema_metadata(None)
        self._store.commit(part, sheets="sheets_changed" in part.metrics)
        return Part(part.id, part.videos, conform(part.clips, CLIPS), metrics=part.metrics)


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
        row["measured"] += [mark for mark in before["measured"] if mark.partition("@")[0] not in fresh_names]
    return pa.Table.from_pylist(rows, schema=schema)


def attach_sheets(ids: pa.ChunkedArray, frames: pa.Table) -> pa.Array:
    """The contact sheet of each clip, as a column of lists in the order of ``ids``."""
    sheets: dict[str, list[dict[str, object]]] = {}
    for row in frames.to_pylist():
        sheets.setdefault(row["clip_id"], []).append({"t_s": row["t_s"], "jpeg": row["jpeg"]})
    return pa.array([sheets.get(i, []) for i in ids.to_pylist()], SHEET)


def select(frames: pa.Table, video_ids: set[str]) -> pa.Table:
    """The contact sheet frames of these videos."""
    mask = [identity.partition("-")[0] in video_ids for identity in frames["clip_id"].to_pylist()]
    return frames.filter(pa.array(mask, pa.bool_()))
