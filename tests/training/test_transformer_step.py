"""The benchmark of a training step runs and says what it measured."""

from __future__ import annotations

import json

import pytest

from benchmarks.transformer_step import main


@pytest.mark.parametrize(
    ("more", "names"), [([], ("ours", "diffusers")), (["--packed"], ("packed", "padded"))], ids=["diffusers", "packed"]
)
def test_each_pair_and_the_sum_are_lines_of_json(
    more: list[str], names: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--height", "4", "--width", "4", "--batch", "2", "--pairs", "2", *more])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("pair") for line in lines] == [0, 1, None]
    for line in lines[:2]:
        ours, other = line[f"{names[0]}_cpu_s"], line[f"{names[1]}_cpu_s"]
        assert line["ratio"] == pytest.approx(ours / other, rel=0.05)
    low, high = lines[2]["quartiles"]
    assert low <= lines[2]["ratio"] <= high
