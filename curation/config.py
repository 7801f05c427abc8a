"""pipelines.yaml: from YAML to a checked Plan. Every mistake is found here, before any work starts, with its place."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from annotated_types import Len

from captioning import CAPTIONERS
from curation.document import EXPECTED, Document
from curation.dotted import load_object
from curation.errors import ConfigError, MissingError, UsageError, nearest, one_line
from curation.model_files import MissingWeightsError
from curation.plan import Plan, ShardSettings, Step, is_dense
from curation.rules import Rule
from curation.stage import Filter, Stage, TableStage
from curation.table import CAPTIONS, CLIPS, extend
from filters import FILTERS
from shards.codecs import misfit

STAGES: dict[str, str] = {"decode": "curation.decode:Decode", **FILTERS, **CAPTIONERS}

# Columns that stages may read besides those of the table: they are made when needed and not stored.
DERIVED = ("video_path", "bit_rate", "frames")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """One pipeline as written in YAML."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    stages: Annotated[list[str | dict[str, dict[str, Any] | None]], Len(1)] = dataclasses.field(
        metadata={EXPECTED: "a stage is a name, or a name and its arguments ('motion: {...}')"}
    )
    about: str = ""
    keep: dict[str, Rule] = dataclasses.field(default_factory=dict)
    shards: ShardSettings = dataclasses.field(default_factory=ShardSettings)
    score_rejected: bool = False


def default_file() -> Path:
    """The pipelines.yaml that comes with Cutroom: beside the packages in a checkout, in share/ when installed."""
    beside = Path(__file__).parent.parent / "pipelines.yaml"
    installed = Path(sysconfig.get_path("data")) / "share" / "cutroom" / "pipelines.yaml"
    return beside if beside.exists() else installed


def load_plan(pipeline: str, file: str | os.PathLike[str] | None = None) -> Plan:
    """Read and check one pipeline.

    Args:
        pipeline: its name.
        file: the YAML file; None is the one that comes with Cutroom.

    Raises:
        UsageError: the file is missing or the pipeline unknown.
        ConfigError: a mistake inside the file, with file:line:column.
        MissingError: the pipeline is right, but a package or weights that it needs are not on this machine.
    """
    document = Document(Path(file) if file is not None else default_file())
    if pipeline not in document.content:
        raise UsageError(f"no pipeline {pipeline!r} in {document.file}.{nearest(pipeline, document.content)}")
    spec: Spec = document.validate(Spec, (pipeline,))
    stages = [_stage(document, (pipeline, "stages", i)) for i in range(len(spec.stages))]
    for i, stage in enumerate(stages):  # first, because what a stage writes may depend on files
        _ask(document, (pipeline, "stages", i), stage, stage.check)
    _check_order(document, pipeline, stages)
    if wrong := misfit(spec.shards):
        setting, why = wrong
        raise document.error((pipeline, "shards", setting), f"{setting}: {why}")
    if spec.shards.video == "copy" and not _keeps_whole(stages[0]):
        raise document.error(
            (pipeline, "shards", "video"),
            f"video: copy packs whole files, and {pipeline!r} cuts clips out of them; use `video: remux`, or leave it "
            "out to encode; or set `decode: {detector: none, max_clip_s: null}`, which cuts nothing",
        )
    return _plan(document, pipeline, spec, stages)


def pipeline_names(file: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Names of the pipelines in a file, with what they say they are about."""
    document = Document(Path(file) if file is not None else default_file())
    return {
        name: str(spec.get("about", "")) if isinstance(spec, dict) else "" for name, spec in document.content.items()
    }


def _stage(document: Document, path: tuple[Hashable, ...]) -> Stage:
    entry = document.at(path)
    if isinstance(entry, str):
        name, arguments = entry, {}
    elif len(entry) == 1:
        name, arguments = next(iter(entry.items()))
        path = (*path, name)
    else:
        raise document.error(path, f"one stage per list entry, got {sorted(entry)}: write each with its own dash")
    stage: Stage = document.validate(_stage_class(document, path, name), path, value=arguments or {})
    return stage


def _stage_class(document: Document, path: tuple[Hashable, ...], name: str) -> type[Stage]:
    dotted = STAGES.get(name, name)
    if name not in STAGES and "." not in name and ":" not in name:
        raise document.error(
            path, f"unknown stage {name!r}.{nearest(name, STAGES)} Or name your own: my_module:MyFilter"
        )
    try:
        found = load_object(dotted)
    except Exception as error:  # a user's module may raise anything
        raise document.error(path, f"stage {name!r} cannot be loaded: {one_line(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise document.error(path, f"{name!r} is not a Stage")
    declared = ["name", "frames"] if issubclass(found, Filter) else ["name"]
    if missing := [attribute for attribute in declared if not hasattr(found, attribute)]:
        raise document.error(path, f"{name!r} does not declare {' and '.join(missing)}")
    if absent := [package for package in found.packages if importlib.util.find_spec(package) is None]:
        fix = f"pip install 'cutroom[{found.extra}]'"
        why = f"stage {name!r} needs {' and '.join(absent)}, not installed here: {fix}"
        raise document.error(path, why, MissingError)
    return found


def _ask(document: Document, path: tuple[Hashable, ...], stage: Stage, check: Callable[[], None]) -> None:
    """Call one of a stage's own checks; what it raises gets its place in the file."""
    try:
        check()
    except UsageError as error:
        kind = MissingError if isinstance(error, MissingWeightsError) else ConfigError
        raise document.error(path, f"stage {stage.name!r}: {error}", kind) from error


def _check_order(document: Document, pipeline: str, stages: list[Stage]) -> None:
    """Every stage must find the columns it reads, and every column and name must be unique."""
    path = (pipeline, "stages")
    if stages[0].name != "decode":
        raise document.error((*path, 0), f"the first stage must be 'decode', got {stages[0].name!r}")
    writers = dict.fromkeys(CLIPS.names, "decode") | dict.fromkeys(DERIVED, "")
    all_writes = {name: stage.name for stage in stages for name in stage.writes.names}
    names: set[str] = set()
    for i, stage in enumerate(stages):
        if stage.name in names:
            raise document.error((*path, i), f"stage {stage.name!r} stands here twice")
        names.add(stage.name)
        for column in stage.reads:
            if column in writers:
                continue
            if column in all_writes:
                hint = f"which {all_writes[column]!r} writes later; move it up"
            else:
                hint = f"which no stage writes.{nearest(column, set(writers) | set(all_writes))}"
            raise document.error((*path, i), f"stage {stage.name!r} reads {column!r}, {hint}")
        before = extend(*(earlier.writes for earlier in stages[:i]))
        _ask(document, (*path, i), stage, functools.partial(stage.check_inputs, before))
        for column in stage.writes.names if i else ():
            if writers.get(column):
                raise document.error(
                    (*path, i), f"stage {stage.name!r} writes {column!r}, which {writers[column]!r} writes too"
                )
            writers[column] = stage.name
        _check_reads(document, (*path, i), stage)


def _check_reads(document: Document, path: tuple[Hashable, ...], stage: Stage) -> None:
    """A stage that does not run on one part after decoding cannot read everything."""
    if is_dense(stage) and (late := [c for c in stage.reads if c not in CLIPS.names]):
        raise document.error(path, f"stage {stage.name!r} runs while decoding and cannot read {late} yet")
    if isinstance(stage, TableStage) and (other := [c for c in stage.reads if c in ("video_path", "frames")]):
        raise document.error(path, f"stage {stage.name!r} runs on all clips at once and cannot read {other}")


def _keeps_whole(decode: Stage) -> bool:
    """Whether every clip is all of its video; the grid divides nothing that may be of any length."""
    told = decode.settings()
    return told.get("detector") == "none" and told.get("max_clip_s") is None


def _plan(document: Document, pipeline: str, spec: Spec, stages: list[Stage]) -> Plan:
    ordered = [stages[0], *filter(is_dense, stages[1:]), *(stage for stage in stages[1:] if not is_dense(stage))]
    schema = extend(*(stage.writes for stage in ordered))
    vocabulary = {column: words for stage in ordered for column, words in stage.vocabulary.items()}
    for column in spec.keep:
        if column not in schema.names:
            known = nearest(column, schema.names)
            raise document.error((pipeline, "keep", column), f"no stage writes {column!r}.{known}")
        if wrong := _misfit(spec.keep[column], schema.field(column).type, vocabulary.get(column)):
            raise document.error((pipeline, "keep", column), f"{column}: {wrong}")
    if spec.shards.crop_bars and "letterbox" not in schema.names:
        raise document.error((pipeline, "shards", "crop_bars"), "crop_bars needs the stage `quality`, which finds bars")
    steps, upstream = [], dict.fromkeys(CAPTIONS.names, "")
    for stage in ordered:
        made_by = {column: made for column, made in upstream.items() if made}
        mark, parts = stage.mark(made_by), stage.parts(made_by)
        upstream.update(dict.fromkeys(stage.writes.names, mark) if stage is not ordered[0] else _decode_marks(stage))
        rules = {c: rule for c, rule in spec.keep.items() if c in stage.writes.names}
        steps.append(Step(stage, mark, rules, parts))
    return Plan(pipeline, tuple(steps), spec.shards, spec.score_rejected)


def _misfit(rule: Rule, kind: pa.DataType, words: Sequence[str] | None) -> str | None:
    """Why a rule cannot be judged on a column of this type and, where their list is closed, of these words."""
    has_range, has_words = (rule.min, rule.max) != (None, None), (rule.any_of, rule.none_of) != (None, None)
    if has_range and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return f"min and max need numbers, and the column holds {kind}"
    if has_words and not (pa.types.is_string(kind) or (pa.types.is_list(kind) and pa.types.is_string(kind.value_type))):
        return f"any_of and none_of need words, and the column holds {kind}"
    if rule.min is not None and rule.max is not None and rule.min > rule.max:
        return f"min {rule.min:g} is above max {rule.max:g}: nothing can be kept"
    if words is not None and (wrong := [w for w in (*(rule.any_of or ()), *(rule.none_of or ())) if w not in words]):
        return f"{wrong[0]!r} is none of its words.{nearest(wrong[0], words)}"
    return None


def _decode_marks(decode: Stage) -> dict[str, str]:
    """What stages depend on when they read the contact sheet: how it was made, but not how shots were found.

    The span of a clip is part of its id, so a clip that keeps its id keeps every score although others moved.
    """
    settings = {key: value for key, value in decode.settings().items() if key.startswith("sheet_")}
    return {"frames": f"{decode.name}@{decode.version}:{settings}"}
