"""The benchmark of first frames: its figures, and that a file costs little of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.first_frame import near, through_a_file
from benchmarks.world import real


def test_a_picture_off_by_so_many_levels_has_the_psnr_of_the_formula() -> None:
    given = np.full((64, 64, 3), 100, np.uint8)
    found = near([given + 16, given + 4], [given, given])
    expected = [20 * np.log10(255 / levels) for levels in (16, 4)]
    assert found["mean"] == pytest.approx(np.mean(expected), abs=0.01)
    assert found["worst"] == pytest.approx(expected[0], abs=0.01)
    assert found["enough"] == 0.5  # 24 dB and 36 dB


def test_a_file_costs_a_first_frame_little_and_another_picture_is_far(tmp_path: Path) -> None:
    given = [video[0] for video in real(tmp_path, 6, colours=6)[0]]
    coded = near([through_a_file(picture[None], tmp_path)[0] for picture in given], given)
    assert coded["worst"] > 30
    assert near([*given[1:], given[0]], given)["mean"] < 20
