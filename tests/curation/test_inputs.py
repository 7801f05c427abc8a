"""Finding videos: folders, globs, lists, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curation.errors import UsageError
from curation.inputs import find_videos


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.mp4", "B.MOV", "notes.txt", "deep/er/c.webm", ".hidden.mp4", ".dot/d.mp4", "odd [1].mp4"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_with_its_subfolders_and_hidden_names_are_skipped(tree: Path) -> None:
    found = find_videos(["in"])
    assert found.videos == ["in/B.MOV", "in/a.mp4", "in/deep/er/c.webm", "in/odd [1].mp4"]
    assert found.num_ignored == 1


def test_paths_come_back_as_given(tree: Path) -> None:
    assert find_videos([str(tree / "in" / "a.mp4")]).videos == [str(tree / "in" / "a.mp4")]
    assert find_videos(["./in//a.mp4"]).videos == ["in/a.mp4"]


def test_relative_paths_are_relative_to_the_base_of_the_first_run(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "in")
    assert find_videos(["a.mp4"], base=tree).videos == ["in/a.mp4"]


def test_globs_and_names_that_look_like_globs(tree: Path) -> None:
    assert find_videos(["in/**/*.webm"]).videos == ["in/deep/er/c.webm"]
    assert find_videos(["in/odd [1].mp4"]).videos == ["in/odd [1].mp4"]


def test_the_same_file_given_twice_or_by_a_link_is_one_video(tree: Path) -> None:
    os.symlink(tree / "in" / "a.mp4", tree / "in" / "z.mp4")
    assert find_videos(["in/a.mp4", "in", "in/a.mp4"]).videos.count("in/a.mp4") == 1
    assert "in/z.mp4" not in find_videos(["in"]).videos


def test_links_in_a_circle_end(tree: Path) -> None:
    os.symlink(tree / "in", tree / "in" / "deep" / "loop")
    assert len(find_videos(["in"]).videos) == 4


def test_a_list_names_files_relative_to_itself_and_keeps_missing_ones(tree: Path) -> None:
    (tree / "in" / "list.txt").write_text("# comment\n\na.mp4\n  deep/er/c.webm  \nmissing.mp4\n")
    assert find_videos(["in/list.txt"]).videos == ["in/a.mp4", "in/deep/er/c.webm", "in/missing.mp4"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no input"),
        (["absent"], "absent: no such file or folder"),
        (["in/*.avi"], "matches no file"),
        (["in/.dot/none"], "no such file"),
        (["empty"], "no video in it"),
        (["s3://bucket/x.mp4"], "only local paths"),
    ],
)
def test_what_cannot_be_meant_is_refused(tree: Path, given: list[str], message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        find_videos(given)


def test_order_of_inputs_does_not_matter(tree: Path) -> None:
    assert find_videos(["in/deep", "in/a.mp4"]) == find_videos(["in/a.mp4", "in/deep"])
