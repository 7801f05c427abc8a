"""Reading a training's YAML: stages, changes on the command line, and mistakes with their places."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from curation.errors import ConfigError, UsageError
from training.settings import STRICT, OptimiserSettings, Training, load_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Whole:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    training: Training
    optimiser: OptimiserSettings = dataclasses.field(default_factory=OptimiserSettings)


def _file(folder: Path, text: str) -> Path:
    path = folder / "vae.yaml"
    path.write_text(text, encoding="utf-8")
    return path


_TWO = """\
training:
  steps: 100
  ema: 0.99
optimiser: {learning_rate: 1.0e-3}
stages:
  - name: short
  - name: long
    training:
      steps: 20
      context_parallel: 2
"""


def test_a_stage_sets_otherwise_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    short, long = load_stages(_file(tmp_path, _TWO), _Whole)
    assert (short.name, short.config.training.steps, short.config.training.context_parallel) == ("short", 100, 1)
    assert (long.name, long.config.training.steps, long.config.training.context_parallel) == ("long", 20, 2)
    assert long.config.training.ema == 0.99
    assert long.config.optimiser.learning_rate == 1e-3


def test_without_stages_there_is_one_without_a_name(tmp_path: Path) -> None:
    (only,) = load_stages(_file(tmp_path, "training: {steps: 5}"), _Whole)
    assert (only.name, only.config.training.steps) == ("", 5)


def test_changes_hold_for_every_stage_and_the_last_one_wins(tmp_path: Path) -> None:
    changes = ["training.steps=7", "optimiser.betas=[0.8, 0.9]", "training.steps=8"]
    stages = load_stages(_file(tmp_path, _TWO), _Whole, changes=changes)
    assert [stage.config.training.steps for stage in stages] == [8, 8]
    assert stages[0].config.optimiser.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.step=7", r"--set training.step=7: unknown key 'step'. Did you mean 'steps'\?"),
        ("training.steps=many", r"--set training.steps=many: training.steps: .*integer.*, got 'many'"),
        ("training.steps", r"--set training.steps: NAME=VALUE is meant"),
        ("training.steps=[", r"--set training.steps=\[: '\[' is not valid YAML"),
        ("training.seed=.inf", r"--set training.seed=.inf: a number in here is infinite"),
    ],
)
def test_a_wrong_change_is_named(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_stages(_file(tmp_path, _TWO), _Whole, changes=[change])


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (_TWO.replace("ema: 0.99", "ema: much"), "3:3", "training.ema"),  # said once for both stages, where it stands
        (_TWO.replace("context_parallel", "context_paralel"), "10:7", "Did you mean 'context_parallel'"),
        (_TWO.replace("name: long", "name: short"), "7:5", "two stages have the name 'short'"),
        (_TWO.replace("name: long", "name: ../x"), "7:5", "a name of letters"),
        ("x", "1:1", "a mapping from settings to their values"),
        ("training: {steps: 5}\nstages: 3", "2:1", "a list of stages is meant"),
        ("training: {steps: 5}\ntrainin: {}", "2:1", "unknown key 'trainin'"),
    ],
)
def test_a_mistake_in_the_file_is_said_with_its_place(text: str, place: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"vae.yaml:{place}: .*{message}"):
        load_stages(_file(tmp_path, text), _Whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`steps` or `minutes`"),
        ({"steps": 0}, "training.steps 0"),
        ({"minutes": -1.0}, "training.minutes -1"),
        ({"steps": 1, "accumulate": 0}, "training.accumulate 0"),
        ({"steps": 1, "ema": 1.0}, "training.ema 1"),
        ({"steps": 1, "keep_checkpoints": 0}, "keep_checkpoints"),
    ],
)
def test_values_that_make_no_sense_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Training(**settings).check()
