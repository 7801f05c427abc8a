"""The step that does the work of a run: decode what is new, measure what is missing, judge, commit.

It resumes by itself: a video is decoded only if its row does not carry the decode stage's mark, a stage runs only on
clips that do not carry its mark, and rules are judged afresh every time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import standing
from curation.clips import Range
from curation.decode import Decode, Decoded, Decoder, failed, join
from curation.errors import CutroomError, StageError, TableError, VideoError, one_line
from curation.frames import SHEET
from curation.isolate import Isolated
from curation.plan import Plan, Step
from curation.ranges import RangeStore
from curation.rules import judge
from curation.sheets import take_sheets
from curation.stage import Needs, run_stage
from curation.table import APART, CLIPS, VIDEOS, Part, Store, conform, failed_stage, without_marks


@dataclasses.dataclass
class Curate:
    """One link of the chain from videos to committed parts; links differ in what their workers need.

    Args:
        plan: the whole pipeline.
        steps: the stages of ``plan.later`` that this link runs.
        output: the output directory.
        base: relative video names are relative to this folder.
        first: load the part and decode; last: commit.
        whole: instead of ``first``, where a later round begins: the stage over the whole table. Its results come as
            ``part.clips``, by ``clip_id``; the rest is loaded as the round before has committed it.
        retry_failed: try failed videos and clips again.
        run: the run that this works for; see ``Store.begin``.
    """

    plan: Plan
    steps: list[Step]
    output: str
    base: str
    first: bool = True
    last: bool = True
    retry_failed: bool = False
    whole: Step | None = None
    run: str | None = None

    @property
    def needs(self) -> Needs:
        return self.steps[0].stage.needs if self.steps else self.plan.decode_needs

    def setup(self) -> None:
        self._store = Store(self.output, run=self.run)
        self._ranges = RangeStore(self._store.root, self.plan)
        settings = self.plan.decode.stage
        assert isinstance(settings, Decode)
        self._decoder = Decoder(self.plan.decode, self.plan.dense, self.plan.score_rejected)
        self._child: Isolated | None = None
        set_up(self.steps, self._store)
        with _setting_up():
            if self.first and settings.isolate:
                self._child = Isolated(self._decoder, stall_s=settings.stall_s, memory_bytes=settings.memory_mb << 20)
                self._child.start()
            elif self.first:
                self._decoder.setup()

    def __call__(self, part: Part) -> Part:
        self._has_sheets = part.frames.num_rows > 0  # an earlier link may have read them
        if self.whole:
            part = self._take_results(part, self.whole)
        elif self.first:
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

    def undecoded(self, part: Part) -> list[dict[str, Any]]:
        """The rows of the videos that calling this for ``part`` will decode."""
        self._store, self._has_sheets = Store(self.output), False
        loaded = self._load(Part(part.id, part.videos))
        return [row for row in loaded.videos.to_pylist() if not self._is_decoded(row, _of_video(loaded.clips, row))]

    def _load(self, part: Part) -> Part:
        """Bring in what was committed for this part earlier. ``part.videos`` names the videos it shall hold now."""
        schema = self.plan.clip_schema
        if not self._store.path("videos", part.id).exists():
            part.clips = schema.empty_table()
            return part
        names = dict(zip(part.videos["video_id"].to_pylist(), part.videos["video"].to_pylist(), strict=True))
        stored = self._with_apart(part.id, self._store.read("clips", part.id)).to_pylist()
        clips = [
            standing.reset(clip, names[clip["video_id"]], self.plan, retry_failed=self.retry_failed)
            for clip in stored
            if clip["video_id"] in names
        ]
        if len(clips) < len(stored):
            self._load_sheets(part)
            part.add("sheets_changed", 1)
        part.clips = pa.Table.from_pylist(clips, schema=schema)
        return part

    def _with_apart(self, part_id: str, clips: pa.Table) -> pa.Table:
        """Stored clips in the schema of the plan; what was kept apart and is gone counts as never measured.

        So does what is of another type by now: its stage has changed.
        """
        schema = self.plan.clip_schema
        clips = self._store.with_apart(part_id, clips, schema)
        scores = set(schema.names) - set(CLIPS.names)
        retyped = {
            name for name in scores & set(clips.column_names) if clips.field(name).type != schema.field(name).type
        }
        clips = clips.drop_columns(sorted(retyped))
        gone = (set(APART) & set(schema.names)) - set(clips.column_names) | retyped
        if lost := {step.stage.name for step in self.plan.steps if gone & set(step.stage.writes.names)}:
            field, old = CLIPS.field("measured"), clips["measured"].to_pylist()
            measured = [without_marks(marks, lost) for marks in old]
            clips = clips.set_column(clips.schema.get_field_index("measured"), field, pa.array(measured, field.type))
        return conform(clips, schema)

    def _take_results(self, part: Part, step: Step) -> Part:
        """The part as the round before has committed it, with what the stage over the whole table says of its clips."""
        schema, results = self.plan.clip_schema, {row["clip_id"]: row for row in part.clips.to_pylist()}
        before = self._with_apart(part.id, self._store.read("clips", part.id))
        rows = before.to_pylist()
        for row in rows:
            result = results[row["clip_id"]]
            row.update({name: result[name] for name in step.stage.writes.names})
            row["measured"] = without_marks(row["measured"], {step.stage.name}) + result["measured"]
        clips = standing.drop_outdated(before, pa.Table.from_pylist(rows, schema=schema), step, self.plan)
        part.clips = judge(clips, step.rules)
        return part

    def _load_sheets(self, part: Part) -> None:
        """Contact sheets are large and seldom needed again, so they are read only on demand."""
        if not self._has_sheets and self._store.path("videos", part.id).exists():
            wanted = set(part.videos["video_id"].to_pylist())
            part.frames = select(self._store.read("frames", part.id), wanted)
        self._has_sheets = True

    def _decode_missing(self, part: Part) -> Part:
        """Decode the videos that were not, or whose clips lack a score that only decoding can give."""
        done = []
        for row in part.videos.to_pylist():
            clips = _of_video(part.clips, row)
            if self._is_decoded(row, clips):
                clips = standing.forget_unmarked(clips, self.plan.dense)
            else:
                row, clips = self._decode_again(part, row, clips)
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

    def _decode_again(self, part: Part, row: dict[str, Any], clips: pa.Table) -> tuple[dict[str, Any], pa.Table]:
        """Decode one video and put its contact sheet in the place of the old one."""
        path = os.path.join(self.base, row["video"])
        try:
            with open(path, "rb"):
                pass
        except OSError as error:  # nothing is known about the video itself, so the next run tries again
            if clips.num_rows:
                return {**row, "error": f"kept as it was, because the file is not there: {one_line(error)}"}, clips
            return {**failed(row, error, "").video, "measured": []}, clips
        try:
            decoded = self._decode(path, row)
        except CutroomError as error:
            if not isinstance(error, VideoError):
                raise  # it is not this file's fault
            decoded = failed(row, error, self.plan.decode.mark)
        except Exception as error:  # whatever one file does, it costs only that file
            decoded = failed(row, error, self.plan.decode.mark)
        self._load_sheets(part)
        others = select(part.frames, set(part.videos["video_id"].to_pylist()) - {row["video_id"]})
        part.frames = pa.concat_tables([others, decoded.frames])
        part.add("videos_decoded", 1)
        part.add("frames_decoded", decoded.video.get("num_frames") or 0)
        part.add("sheets_changed", 1)
        return decoded.video, standing.carry_over(decoded.clips, clips, self.plan)

    def _decode(self, path: str, row: dict[str, Any]) -> Decoded:
        if (film := self._ranges.take(row, self.plan.decode.mark)) is not None:
            return film
        sheets = str(self._store.scratch(f"{row['video_id']}.arrow"))
        try:
            piece = (self._child.call if self._child else self._decoder)(path, row, Range(), sheets)
        except BaseException:  # a film's contact sheets are large
            with contextlib.suppress(OSError):
                os.unlink(sheets)
            raise
        try:
            frames = take_sheets(sheets)
        except FileNotFoundError as error:  # a run removes what killed ones left; this worker is of one of those
            raise TableError(f"{sheets} is gone: another run has begun in this folder") from error
        return join(row, self.plan.decode.mark, [piece], [frames])

    def _measure(self, part: Part, step: Step) -> Part:
        """Run one stage, giving it the derived columns that it reads."""
        if any(failed_stage(error or "") == step.stage.name for error in part.clips["error"].to_pylist()):
            part.clips = standing.fail_again(part.clips, step.stage.name)
        clips = part.clips
        wants = set(step.stage.inputs)
        if "video_path" in wants:
            paths = [os.path.join(self.base, video) for video in clips["video"].to_pylist()]
            clips = clips.append_column("video_path", pa.array(paths, pa.string()))
        if "bit_rate" in wants:
            clips = clips.append_column("bit_rate", bit_rates(clips, part.videos))
        if "frames" in wants:
            self._load_sheets(part)
            clips = clips.append_column("frames", attach_sheets(clips["clip_id"], part.frames))
        clips = run_stage(step.stage, clips, mark=step.mark, parts=step.parts, score_rejected=self.plan.score_rejected)
        clips = conform(clips, self.plan.clip_schema)
        if not step.stage.cached:
            clips = standing.drop_outdated(part.clips, clips, step, self.plan)
        part.clips = judge(clips, step.rules)
        return part

    def _commit(self, part: Part) -> Part:
        """Write what changed and pass on only what the summary needs."""
        # However often some of them were run again.
        order = [mark for step in self.plan.steps for mark in (step.mark, *step.parts)]
        measured = [sorted(marks, key=order.index) for marks in part.clips["measured"].to_pylist()]
        field, position = CLIPS.field("measured"), part.clips.schema.get_field_index("measured")
        part.clips = part.clips.set_column(position, field, pa.array(measured, field.type))
        part.clips = part.clips.replace_schema_metadata(None)
        self._store.commit(part, sheets="sheets_changed" in part.metrics)
        self._forget(part)
        return Part(part.id, part.videos, conform(part.clips, CLIPS), metrics=part.metrics)

    def _forget(self, part: Part) -> None:
        """Remove what stages kept for the videos of a part until now, but not where they have to try again."""
        if not self._store.kept.is_dir():
            return
        rows = part.clips.select(["video_id", "status", "error", "measured"]).to_pylist()
        videos = set(part.videos["video_id"].to_pylist())
        kinds: dict[str, set[str]] = {}  # what stages are called before a bracket -> videos that they are not done with
        for step in self.plan.later:
            waiting = kinds.setdefault(step.stage.name.partition("(")[0], set())
            waiting |= {row["video_id"] for row in rows if standing.is_open(row, step)}
        for kind, waiting in kinds.items():
            for video_id in videos - waiting:
                (self._store.kept / f"{video_id}.{kind}.jsonl").unlink(missing_ok=True)


def set_up(steps: Sequence[Step], store: Store) -> None:
    """Prepare stages for their work.

    Raises:
        StageError: one cannot be set up, which is no clip's fault.
    """
    with _setting_up():
        for step in steps:
            step.stage.keep_in(store.kept)
            step.stage.setup()


@contextlib.contextmanager
def _setting_up() -> Iterator[None]:
    try:
        yield
    except CutroomError:
        raise
    except Exception as error:
        raise StageError(f"a stage cannot be set up: {one_line(error)}") from error


def _of_video(clips: pa.Table, row: dict[str, Any]) -> pa.Table:
    return clips.filter(pc.equal(clips["video_id"], row["video_id"]))


def bit_rates(clips: pa.Table, videos: pa.Table) -> pa.Array:
    """Bits per second of the file that each clip comes from, sound and all; null where its length is not known."""
    rates = {row["video_id"]: 8 * row["bytes"] / row["duration_s"] for row in videos.to_pylist() if row["duration_s"]}
    return pa.array([rates.get(video) for video in clips["video_id"].to_pylist()], pa.float64())


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
