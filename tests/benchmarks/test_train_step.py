"""The benchmark of a step measures both models."""

from __future__ import annotations

import json

import pytest

from benchmarks.train_step import main


@pytest.mark.parametrize("model", ["vae", pytest.param("transformer", marks=pytest.mark.slow)])
def test_steps_of_both_models_are_measured(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--frames", "5", "--height", "32", "--width", "32", "--steps", "2"]
    main(["--model", model, "--size", "debug", *shape, "--set", "training.precision=fp32", "--only", "plain"])
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["step_s"] > 0, line
    assert line["peak_memory_gb"] > 0
