"""A pipeline made ready to run: stages in order, each with its resume mark and the rules on what it writes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Ge, Gt, Le

from curation.rules import Rule
from curation.stage import Filter, Needs, Stage, TableStage, operational
from curation.table import CAPTIONS, CLEANED, CLIPS, SHARDED, USAGE, extend


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage, the mark of its results, the rules that can be judged once it has run, and what of it stands alone."""

    stage: Stage
    mark: str
    rules: dict[str, Rule]
    parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of ``Stage.parts``


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How accepted clips are encoded and packed, as written under ``shards:``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    max_samples: Annotated[int, Ge(1)] = 256  # per shard; counted, not weighed, so that the plan needs no encoding
    # encode: frame-exact and all alike. remux: packets are copied, without loss, where a clip can be cut out like that,
    # and encoded where not. copy: whole MP4 files go in as they are, and nothing below matters.
    video: Literal["encode", "remux", "copy"] = "encode"
    codec: Literal["h264", "hevc", "vp9", "av1"] = "h264"  # every loader opens h264, quickly; the others are smaller
    preset: int | str | None = None  # the codec's own trade of time for size; null is a fast one
    crf: int | None = None  # the codec's own scale, lower is better and larger; null is visually lossless
    gop_s: Annotated[float, Gt(0)] = 1.0  # a keyframe at least this often, for random access in training
    short_side_px: Annotated[int, Ge(16)] | None = None  # scale down to this; null keeps the size
    crop_bars: bool = False  # cut the bars off that the stage quality found
    fps: Annotated[float, Gt(0), Le(1000)] | None = None  # show so many frames a second; null keeps each and its time
    audio: Literal["drop", "keep"] = "drop"  # keep: as AAC, where there is sound; training on pictures does not need it
    stall_s: Annotated[float, Gt(0)] = operational(300.0)  # an encoder without progress for so long costs its clip


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked pipeline."""

    pipeline: str
    steps: tuple[Step, ...]  # the decode stage first, then filters on decoded frames, then the others
    shards: ShardSettings
    score_rejected: bool = False

    @property
    def decode(self) -> Step:
        return self.steps[0]

    @property
    def dense(self) -> list[Step]:
        """Filters that run inside the decode pass."""
        return [step for step in self.steps[1:] if is_dense(step.stage)]

    @property
    def decode_needs(self) -> Needs:
        """What a worker that decodes occupies: filters inside the pass run one after another and share its GPU."""
        gpus = max((step.stage.needs.gpus for step in self.dense), default=0.0)
        return dataclasses.replace(self.decode.stage.needs, gpus=gpus)

    @property
    def later(self) -> list[Step]:
        """Stages that need no decoding."""
        return [step for step in self.steps[1:] if not is_dense(step.stage)]

    @property
    def rounds(self) -> list[list[Step]]:
        """``later`` in rounds: all parts go through one before the next begins with a stage over the whole table."""
        rounds: list[list[Step]] = [[]]
        for step in self.later:
            if isinstance(step.stage, TableStage):
                rounds.append([])
            rounds[-1].append(step)
        return rounds

    @property
    def rules(self) -> dict[str, Rule]:
        """All rules in the order in which they are judged."""
        return {column: rule for step in self.steps for column, rule in step.rules.items()}

    @property
    def clip_schema(self) -> pa.Schema:
        """The columns of the clip table that this plan writes."""
        written = extend(*(step.stage.writes for step in self.steps))
        usage = pa.schema([field for field in written if field.type == USAGE])
        clean = pa.schema([field for field in written if field.name in CLEANED.names])
        others = {*CAPTIONS.names, *clean.names, *usage.names}
        scores = pa.schema([field for field in written if field.name not in others])
        return extend(CLIPS, scores, CAPTIONS, clean, usage, SHARDED)

    @property
    def scores(self) -> list[str]:
        """The columns that filters measure."""
        known = extend(CLIPS, CAPTIONS, CLEANED, SHARDED).names
        return [field.name for field in self.clip_schema if field.name not in known and field.type != USAGE]

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the result, for ``run.json``."""
        return {
            "pipeline": self.pipeline,
            "stages": [{"name": s.stage.name, "mark": s.mark, "settings": s.stage.settings()} for s in self.steps],
            "keep": {column: dataclasses.asdict(rule) for column, rule in self.rules.items()},
            "score_rejected": self.score_rejected,
            "shards": dataclasses.asdict(self.shards),
        }


def is_dense(stage: Stage) -> bool:
    """Whether a stage needs decoded frames, and so runs inside the decode pass."""
    return isinstance(stage, Filter) and stage.frames.fps is not None
