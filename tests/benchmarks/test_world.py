"""The benchmark of a trained world: its shards, its control, and a reader that is right where the truth is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.world import main, read, real, right, write_shards
from tests.training.data.made import read_tar


@pytest.mark.parametrize("colours", [6, 12])
def test_the_reader_is_right_about_real_clips(colours: int, tmp_path: Path) -> None:
    videos, truth = real(tmp_path, 24, colours=colours)
    assert right(videos, truth) == dict.fromkeys(("colour", "shape", "direction", "background"), 1.0)


def test_the_reader_sees_nothing_in_noise() -> None:
    grey = np.full((5, 64, 64, 3), 128, np.uint8)
    assert read(grey)["direction"] is None


def test_the_control_has_the_same_clips_with_the_captions_of_others(tmp_path: Path) -> None:
    shards = [
        read_tar(write_shards(tmp_path, 30, colours=12, shuffled=shuffled) / "000000.tar") for shuffled in (False, True)
    ]
    assert all(shards[0][key]["mp4"] == shards[1][key]["mp4"] for key in shards[0])
    captions = [[sample["txt"] for sample in shard.values()] for shard in shards]
    assert sorted(captions[0]) == sorted(captions[1])
    assert captions[0] != captions[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_samples_have_the_asked_colour_and_background_and_those_of_shuffled_captions_have_not(tmp_path: Path) -> None:
    """The first minutes of learning, in steps, so that a loaded machine changes nothing."""
    common = ["--folder", str(tmp_path), "--colours", "6", "--clips", "500", "--asked", "40", "--threads", "1"]
    for role in ("--vae-set", "--set"):
        common += [role, "training.minutes=null"]
    common += ["--vae-set", "training.steps=230", "--set", "training.steps=500"]
    true = main(common)
    shuffled = main([*common, "--shuffled"])
    assert true["real"] == dict.fromkeys(true["real"], 1.0), "the reader is wrong"
    shares = {
        kind: {name: (results["unseen"][name] + results["seen"][name]) / 2 for name in ("colour", "background")}
        for kind, results in (("true", true), ("shuffled", shuffled))
    }  # of 80 samples each
    assert shares["true"]["background"] >= 0.7, shares
    assert shares["true"]["colour"] >= 0.45, shares
    for name, chance in (("background", 1 / 4), ("colour", 1 / 6)):
        assert shares["shuffled"][name] <= chance + 0.2, shares  # four standard errors or so
    before, after = true["grid_loss"]
    assert after < before / 6, true["grid_loss"]
