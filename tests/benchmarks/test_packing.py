"""The benchmark of packs runs every way and says how they compare."""

from __future__ import annotations

import json

import pytest

from benchmarks.packing import in_step, main


def test_every_way_is_measured_and_compared_with_packs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--samples", "26", "--height", "4", "--width", "4", "--rounds", "1", "--pack", "2", "--ranks", "2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ways = ["packs", "padding", "trimmed", "buckets"]
    assert [line.get("way") for line in lines] == [*ways, None]
    speeds = {line["way"]: line["tokens_per_s"] for line in lines[:-1]}
    for way in ways[1:]:
        assert lines[-1][f"packs_over_{way}"] == pytest.approx(speeds["packs"] / speeds[way], rel=0.01)
    assert lines[-1]["fill"] > 0.8


def test_ranks_wait_for_the_slowest() -> None:
    assert in_step([1.0, 1.0, 1.0, 1.0], 2) == 1.0
    assert in_step([1.0, 3.0], 2) == pytest.approx(4 / 6)
