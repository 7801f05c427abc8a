"""The benchmark of a trained world: its shards, its control, and a reader that is right where the truth is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.world import read, real, right, write_shards
from tests.training.data.made import read_tar


def test_the_reader_is_right_about_real_clips(tmp_path: Path) -> None:
    videos, truth = real(tmp_path, 24)
    assert right(videos, truth) == dict.fromkeys(("colour", "shape", "direction", "background"), 1.0)


def test_the_reader_sees_nothing_in_noise() -> None:
    grey = np.full((5, 64, 64, 3), 128, np.uint8)
    assert read(grey)["direction"] is None


def test_the_control_has_the_same_clips_with_the_captions_of_others(tmp_path: Path) -> None:
    shards = [read_tar(write_shards(tmp_path, 30, shuffled=shuffled) / "000000.tar") for shuffled in (False, True)]
    assert all(shards[0][key]["mp4"] == shards[1][key]["mp4"] for key in shards[0])
    captions = [[sample["txt"] for sample in shard.values()] for shard in shards]
    assert sorted(captions[0]) == sorted(captions[1])
    assert captions[0] != captions[1]
