"""Captions from files beside the videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioning.sidecar import caption_for


@pytest.fixture
def video(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "labels").mkdir()
    return tmp_path / "videos" / "name.mp4"


def test_the_whole_text_is_the_caption_not_its_first_line(video: Path) -> None:
    video.with_suffix(".txt").write_text("\ufeffA dog runs.\n\nThe sun sets: 夕日。\n", encoding="utf-8")
    assert caption_for(video, 0, 2) == "A dog runs.\n\nThe sun sets: 夕日。"


def test_labels_beside_videos_are_found(video: Path) -> None:
    (video.parent.parent / "labels" / "name.txt").write_text("from labels")
    assert caption_for(video, 0, 2) == "from labels"


def test_json_comes_first_then_text(video: Path) -> None:
    video.with_suffix(".txt").write_text("text")
    video.with_suffix(".json").write_text(json.dumps({"caption": "json"}))
    assert caption_for(video, 0, 2) == "json"


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (0.0, 2.0, "first"),
        (2.0, 4.0, "second"),
        (1.5, 3.5, "second"),
        (0.0, 4.0, "first"),
        (3.5, 6.0, None),
        (8.0, 9.0, None),
    ],
)
def test_a_clip_takes_the_span_that_covers_most_of_it(
    video: Path, start_s: float, end_s: float, expected: str | None
) -> None:
    spans = [{"start_s": 0.0, "end_s": 2.0, "text": "first"}, {"start_s": 2.0, "end_s": 4.0, "text": "second"}]
    video.with_suffix(".json").write_text(json.dumps({"captions": spans}))
    assert caption_for(video, start_s, end_s) == expected


@pytest.mark.parametrize("content", ["{", '{"caption": 3}', '{"captions": 3}', '{"captions": [{"text": "x"}]}'])
def test_a_file_that_cannot_be_understood_is_said_by_name(video: Path, content: str) -> None:
    video.with_suffix(".json").write_text(content)
    with pytest.raises(ValueError, match=r"name\.json"):
        caption_for(video, 0, 2)


@pytest.mark.parametrize("content", ["[]", "3", '{"width": 640}'])
def test_a_json_file_about_something_else_is_passed_over(video: Path, content: str) -> None:
    video.with_suffix(".json").write_text(content)
    video.with_suffix(".txt").write_text("text")
    assert caption_for(video, 0, 2) == "text"


@pytest.mark.parametrize("content", ["", "  \n "])
def test_an_empty_file_is_no_caption(video: Path, content: str) -> None:
    video.with_suffix(".txt").write_text(content)
    assert caption_for(video, 0, 2) is None


def test_no_file_is_no_caption(video: Path) -> None:
    assert caption_for(video, 0, 2) is None
