"""A file is there whole, as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.files import LEFTOVERS, aside


def test_what_fails_while_it_is_written_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("before")
    with pytest.raises(OSError, match="disk is full"), aside(file) as other:
        other.write_text("hal")
        raise OSError("disk is full")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    with aside(file) as other:
        other.write_text("whole")
        assert file.read_text() == "before"
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_leaves_is_found_and_matches_no_pattern_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    with aside(file) as one, aside(file) as other:
        assert one != other  # two processes may write at once: the later wins
        one.touch()
        other.touch()
        assert set(tmp_path.glob(LEFTOVERS)) == {one, other}
        assert not list(tmp_path.glob("*.parquet"))
    assert list(tmp_path.iterdir()) == [file]
