"""The stage contract, and the one function that calls a stage.

A stage is a dataclass: its fields are its YAML arguments and hold the only defaults. It declares the columns it reads
and writes, what it needs, and does its work in ``process``. Thresholds do not belong in a stage; they are rules.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curation.errors import CutroomError, NotNowError, StageError, one_line
from curation.frames import Frames
from curation.table import failed_stage, without_marks


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one worker of a stage occupies, and how many there may be. Stages with equal needs share a worker."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    max_workers: int | None = None


def operational(default: Any) -> Any:
    """A dataclass field that changes how the work is done but not its result, and so is no part of a resume key."""
    return dataclasses.field(default=default, metadata={"operational": True})


@dataclasses.dataclass(kw_only=True)
class Stage:
    """One step over clips. Subclasses set the class attributes and implement ``process``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    # Of the class; a property where it depends on the arguments. `check` is called before anyone asks for `writes`.
    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when the same input would give another result
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[pa.Schema] = pa.schema([])
    vocabulary: ClassVar[Mapping[str, Sequence[str]]] = {}  # of columns in `writes`: all words that may stand there
    needs: ClassVar[Needs] = Needs()
    cached: ClassVar[bool] = True  # False: reads something besides its columns, so it runs again on every run
    extra: ClassVar[str] = ""  # the extra of setup.cfg that brings the packages it imports,
    packages: ClassVar[tuple[str, ...]] = ()  # by the names it imports them under; looked for before any work starts

    @property
    def inputs(self) -> tuple[str, ...]:
        """All columns that ``process`` is given."""
        return self.reads

    def check(self) -> None:
        """Find out, before any work starts and without loading anything large, whether ``setup`` can succeed.

        Raises:
            MissingWeightsError: of ``curation.model_files``; they must be had first.
            UsageError: the arguments make no sense together.
        """

    def check_inputs(self, columns: pa.Schema) -> None:
        """Find out, before any work starts, whether ``columns``, written by the stages before, can be worked with.

        Raises:
            UsageError: the columns have the right names, but are not what this stage needs.
        """

    def keep_in(self, folder: Path) -> None:
        """Hear of a folder for ``VIDEO_ID.KIND.jsonl``: what must not be lost if the run is killed.

        Called before ``setup``. The file goes when the clips of the video are committed and none failed in this stage,
        or in another that is called alike but for what stands in brackets.
        """

    def setup(self) -> None:
        """Load models and the like, once per worker."""

    def process(self, clips: pa.Table) -> pa.Table:
        """Map the columns in ``inputs`` to the columns in ``writes``, row for row and in order.

        An exception is that of a single clip, and the others are tried without it; a stage that knows which clips
        failed, and must not do the others twice, raises ``SomeFailedError``.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The arguments that decide the result."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("operational")
        }

    def mark(self, upstream: Mapping[str, str]) -> str:
        """Name the result of this stage: ``motion@3f09ab17c2``.

        The key covers the stage's name, version and settings and those of the stages that wrote what it reads
        (``upstream``: column -> mark). A clip whose ``measured`` column holds this mark needs no work.
        """
        return self.mark_of(self.name, self.settings(), upstream)

    def mark_of(self, name: str, settings: Mapping[str, Any], upstream: Mapping[str, str]) -> str:
        """The mark that this stage would have under another name and with other settings."""
        parents = sorted({upstream[column] for column in self.inputs if column in upstream})
        text = json.dumps([name, self.version, settings, parents], sort_keys=True)
        return f"{name}@{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"

    def parts(self, upstream: Mapping[str, str]) -> dict[str, list[str]]:
        """Columns whose values stand by themselves, whatever becomes of the others: mark -> columns.

        Where there are any, ``process`` is given the columns in ``writes`` as well, with the values that stand and null
        for what is to be measured, and returns those values as they are. By default the stage is a single piece.
        """
        return {}


@dataclasses.dataclass(kw_only=True)
class Filter(Stage):
    """A stage that scores the frames of one clip. Authors declare ``frames`` and ``writes`` and write ``score``.

    With ``frames = Frames(fps=...)`` the score is computed inside the decode pass, from frames that are never stored;
    with ``frames = Frames.sheet(...)`` from the contact sheet, without decoding the video again.
    """

    frames: ClassVar[Frames]

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.frames.column, *self.reads)

    def score(self, frames: np.ndarray, times: np.ndarray) -> Any:
        """Score one clip.

        Args:
            frames: uint8, T H W (grey) or T H W 3 (RGB), the picture as displayed.
            times: float64, T, presentation seconds.

        Returns:
            The score, or column name -> value where ``writes`` has several columns. ``None`` (or NaN) where the clip
            cannot be measured.
        """
        raise NotImplementedError

    def process(self, clips: pa.Table) -> pa.Table:
        """Call ``score`` on each clip's frames."""
        column = clips[self.frames.column]
        rows = [self._row(self.score(*self.frames.unpack(value))) for value in column]
        return pa.Table.from_pylist(rows, schema=self.writes)

    def _row(self, result: Any) -> dict[str, Any]:
        names = self.writes.names
        row = dict(result) if isinstance(result, Mapping) else {names[0]: result} if len(names) == 1 else {}
        if set(row) != set(names):
            raise StageError(f"{self.name}.score returned {result!r}, declared values for {names}")
        return {name: known(value) for name, value in row.items()}


@dataclasses.dataclass(kw_only=True)
class TableStage(Stage):
    """A stage that must see the clips of the whole table at once: what it writes for one depends on the others.

    ``process`` is called once in a run, in the driver, after all stages before it have run on all parts, with the clips
    that are still kept, ordered by ``clip_id``; the stages after it skip what the rules on its columns reject. It is
    given columns of the table, never pictures, and its result must not depend on anything else, so that adding videos
    later gives what one run over everything gives. Instead of a column that is kept apart (``embedding``), which of all
    clips does not fit in memory, it is given the file that may hold the clip's value, and null where there is none:
    ``curation.table.read_apart`` reads them. An exception is the run's: there is no clip to blame.
    """

    cached: ClassVar[bool] = False  # a new clip may change the result of an old one


def known(score: Any) -> Any:
    """A score as the table has it: None for NaN, which is what damaged weights give."""
    return None if isinstance(score, (float, np.floating)) and np.isnan(score) else score


class SomeFailedError(CutroomError):
    """Raised by ``process`` with all results: the row of ``writes`` of each clip, or why it has none."""

    def __init__(self, rows: Sequence[dict[str, Any] | Exception]) -> None:
        super().__init__(f"{sum(isinstance(row, Exception) for row in rows)} of {len(rows)} clips failed")
        self.rows = list(rows)


def run_stage(
    stage: Stage,
    clips: pa.Table,
    *,
    mark: str,
    parts: Mapping[str, Sequence[str]] | None = None,
    score_rejected: bool = False,
) -> pa.Table:
    """Run ``stage`` on the clips that need it. Every engine, decode pass and test calls stages through this function.

    Clips that failed, that a rule rejected (unless ``score_rejected``) or that carry ``mark`` already are left alone.
    An exception costs only the clip that caused it: that row becomes ``failed`` with the reason in ``error``. After a
    ``NotNowError`` it does not carry the mark either. Columns of those ``parts`` of the stage whose mark a clip carries
    keep their values in any case.

    Raises:
        StageError: the stage returned other columns, types or row counts than it declared.
    """
    missing = [column for column in stage.inputs if column not in clips.column_names]
    if missing:
        raise StageError(f"stage {stage.name!r} reads {missing}, which the clips do not have")
    rows = [dict.fromkeys(stage.writes.names) for _ in range(clips.num_rows)]
    parts = parts or {}
    kept = {name: clips[name].to_pylist() for name in stage.writes.names if name in clips.column_names}
    status, error = clips["status"].to_pylist(), clips["error"].to_pylist()
    measured = [list(marks or []) for marks in clips["measured"].to_pylist()]

    todo = []
    for i, marks in enumerate(measured):
        fresh = mark in marks and stage.cached
        standing = kept if fresh else _columns(parts, marks)
        rows[i] |= {name: values[i] for name, values in kept.items() if name in standing}
        if fresh:
            continue
        measured[i] = without_marks(marks, {stage.name})
        if status[i] == "kept" or (score_rejected and status[i] == "rejected"):
            todo.append(i)

    batch = clips.select(list(stage.inputs))
    batch = _with_own(batch, stage.writes, rows) if parts else batch
    if len(todo) < clips.num_rows:  # which copies the pictures; chunk by chunk, as all of a film's may not fit in one
        wanted = set(todo)
        batch = batch.filter(pa.array([i in wanted for i in range(clips.num_rows)]))
    for i, result in zip(todo, _process(stage, batch), strict=True):
        if isinstance(result, Exception):
            measured[i] = without_marks(measured[i], {failed_stage(error[i] or "")})  # of a later stage, which may wait
            status[i], error[i] = "failed", f"{stage.name}: {one_line(result)}"
        else:
            rows[i] = result
            measured[i] = list(dict.fromkeys([*measured[i], *parts]))
        measured[i] += [] if isinstance(result, NotNowError) else [mark]

    written = pa.Table.from_pylist(rows, schema=stage.writes)
    changed = {"status": status, "error": error, "measured": measured}
    for field in stage.writes:
        clips = _put(clips, field, written[field.name])
    for name, values in changed.items():
        field = clips.schema.field(name)
        clips = _put(clips, field, pa.array(values, field.type))
    return clips


def _process(stage: Stage, clips: pa.Table) -> list[dict[str, Any] | Exception]:
    """Call the stage on the whole batch; if that fails, halve the batch until the broken clip stands alone."""
    if clips.num_rows == 0:
        return []
    try:
        result = stage.process(clips)
    except StageError:
        raise
    except SomeFailedError as some:
        if len(some.rows) != clips.num_rows:
            raise StageError(f"stage {stage.name!r} has {len(some.rows)} rows for {clips.num_rows} clips") from some
        return some.rows
    except Exception as error:  # any exception is the clip's, not the run's
        if isinstance(stage, TableStage):
            raise StageError(f"stage {stage.name!r} failed on the whole table: {one_line(error)}") from error
        if clips.num_rows == 1:
            return [error]
        half = clips.num_rows // 2
        return _process(stage, clips.slice(0, half)) + _process(stage, clips.slice(half))
    if not result.schema.equals(stage.writes):
        raise StageError(f"stage {stage.name!r} returned {result.schema.names}, declared {stage.writes.names}")
    if result.num_rows != clips.num_rows:
        raise StageError(f"stage {stage.name!r} returned {result.num_rows} rows for {clips.num_rows} clips")
    rows: list[dict[str, Any] | Exception] = result.to_pylist()
    return rows


def _with_own(batch: pa.Table, own: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A batch with the columns that the stage itself writes, as far as they stand."""
    values = pa.Table.from_pylist(rows, schema=own)
    return pa.table([*batch.columns, *values.columns], schema=pa.schema([*batch.schema, *own]))


def _columns(parts: Mapping[str, Sequence[str]], marks: Sequence[str]) -> set[str]:
    """The columns of those parts whose marks are there."""
    return {name for part in parts if part in marks for name in parts[part]}


def _put(table: pa.Table, field: pa.Field, values: Any) -> pa.Table:
    if field.name in table.column_names:
        return table.set_column(table.schema.get_field_index(field.name), field, values)
    return table.append_column(field, values)
