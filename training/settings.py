"""How a model is trained, as dataclasses that hold the only defaults; and reading them from YAML."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt

from curation.document import Document, YamlLoader
from curation.errors import UsageError

STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}
_STAGES = "stages"

C = TypeVar("C")
_Share = Annotated[float, Ge(0), Lt(1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW and its learning rate over time.

    Attributes:
        learning_rate: at its highest.
        muon: the highest learning rate of Muon, which then learns matrices and convolutions, AdamW the rest; null:
            AdamW learns everything. Muon learns from random weights in less than half the time; it is not for models
            that were trained with another.
        weight_decay: of matrices and convolutions; norms and biases are not drawn to zero.
        warmup_steps: until the learning rate is at its highest.
        schedule: ``cosine`` falls to ``final`` (a share of the highest) at the end of the training.
        clip_norm: gradients are scaled down to this length, once per step; null: never.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    learning_rate: Annotated[float, Ge(0)] = 1e-4  # 0 learns nothing, as for a stage that is to be left out
    muon: Annotated[float, Gt(0)] | None = None
    betas: tuple[_Share, _Share] = (0.9, 0.95)
    eps: Annotated[float, Ge(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    warmup_steps: Annotated[int, Ge(0)] = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    final: Annotated[float, Ge(0), Le(1)] = 0.05
    clip_norm: Annotated[float, Gt(0)] | None = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What the loop needs to know, whatever the model.

    Attributes:
        steps: of the optimiser; with ``minutes`` training ends at whichever comes first.
        minutes: train for so long. Where it ends is not exactly repeatable.
        accumulate: batches that each rank computes per step.
        precision: ``bf16`` computes products in bfloat16; weights, optimiser and losses stay in float32.
        ema: how much of the averaged weights stays at each step; null keeps no average.
        compile: by torch.compile: slow at the start, faster afterwards.
        save_memory: compute activations again instead of keeping them; takes about a third longer.
        offload_optimiser: keep what optimisers remember (8 bytes a weight with AdamW) in the machine's memory and not
            on the GPU. A step takes longer by the way there and back, and its numbers are the same. Weights that FSDP2
            spreads over ranks lie there with it, and optimisers compute there.
        context_parallel: ranks that share each sample, a span of its frames each.
        log_every, judge_every, checkpoint_every: steps; a checkpoint is also written at the end.
        keep_checkpoints: the newest so many stay.
        max_skipped: steps in a row whose gradient is not finite, until training stops; such a step changes nothing.
        wandb: name of a project at Weights & Biases to report to as well.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    steps: int | None = None
    minutes: float | None = None
    accumulate: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    ema: float | None = 0.999
    compile: bool = False
    save_memory: bool = False
    offload_optimiser: bool = False
    context_parallel: int = 1
    log_every: int = 10
    judge_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_skipped: int = 20
    seed: Annotated[int, Ge(0)] = 0
    wandb: str | None = None

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        if self.steps is None and self.minutes is None:
            raise UsageError("training: `steps` or `minutes` must say how long to train")
        for name in ("steps", "minutes"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UsageError(f"training.{name} {value:g}: a number above 0 is meant")
        for name in ("accumulate", "context_parallel", "log_every", "judge_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"training.{name} {getattr(self, name)}: 1 or more is meant")
        if self.keep_checkpoints < 1:
            raise UsageError("training.keep_checkpoints 0: without a checkpoint a killed training cannot continue")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UsageError(f"training.ema {self.ema:g}: a share below 1 is meant, such as 0.999")


@dataclasses.dataclass(frozen=True)
class TrainingStage(Generic[C]):
    """One stage of a config: its name (empty where there is but one) and its whole settings."""

    name: str
    config: C


def load_stages(file: Path, kind: type[C], *, changes: Sequence[str] = ()) -> list[TrainingStage[C]]:
    """Read a training config: settings for all stages, and in ``stages`` what each sets otherwise.

    Args:
        file: YAML with the fields of ``kind``, and optionally ``stages``: a list of mappings with a ``name`` each.
        kind: the dataclass of the whole settings.
        changes: as ``training.steps=100``; the value is read as YAML, and holds for every stage.

    Raises:
        UsageError: a change is no setting, or the file is missing.
        ConfigError: a mistake inside the file, with file:line:column.
    """
    document = Document(file, holds="settings to their values")
    common = {name: value for name, value in document.content.items() if name != _STAGES}
    listed = document.content.get(_STAGES, [{}])
    if not isinstance(listed, list) or not listed or not all(isinstance(stage, dict) for stage in listed):
        raise document.error((_STAGES,), "a list of stages is meant, each a mapping with its `name`")
    stages: list[TrainingStage[C]] = []
    for i, own in enumerate(listed):
        path: tuple[str | int, ...] = (_STAGES, i) if _STAGES in document.content else ()
        name = own.get("name", "")
        if path and not (isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()):
            raise document.error((*path, "name"), f"a stage has a name of letters, digits, - and _, got {name!r}")
        if name in [stage.name for stage in stages]:
            raise document.error((*path, "name"), f"two stages have the name {name!r}")
        whole = _merged(common, {key: value for key, value in own.items() if key != "name"})
        config: C = document.validate(kind, path, whole, beside=())
        stages.append(TrainingStage(name, _changed(document, kind, config, whole, changes)))
    return stages


def _changed(document: Document, kind: type[C], config: C, whole: dict[str, Any], changes: Sequence[str]) -> C:
    """The config with ``--set`` applied, one after the other, so that a mistake names the change it stands in."""
    for change in changes:
        place, equals, text = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change}: NAME=VALUE is meant, such as training.steps=100")
        try:
            value = yaml.load(text, YamlLoader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            raise UsageError(f"--set {change}: {text!r} is not valid YAML") from error
        for key in reversed(place.split(".")):
            value = {key: value}
        whole = _merged(whole, value)
        try:
            config = document.validate(kind, (), whole)
        except UsageError as error:
            message = str(error).split(": ", 1)[-1]  # the place in the file is not where the mistake stands
            raise UsageError(f"--set {change}: {message}") from error
    return config


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """``first`` with what ``second`` sets otherwise, mapping by mapping; lists are replaced as a whole."""
    result = copy.copy(first)
    for key, value in second.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
