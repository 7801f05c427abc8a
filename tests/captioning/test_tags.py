"""Scores in words behind a caption, each left out at times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from captioning.tags import with_tags

ROW: dict[str, Any] = {"aesthetic_score": 5.52, "motion_score": 0.4, "camera_motion": ["pan_left"], "caption": "-"}
TAGS = ["aesthetic score: 5.5", "motion score: 0.4", "camera motion: pan left"]


def tagged(row: dict[str, Any], caption: str = "A dog runs.", dropout: float = 0, seed: int = 0) -> str:
    return with_tags(caption, row, np.random.default_rng(seed), dropout=dropout)


def test_all_scores_are_said_in_order() -> None:
    assert tagged(ROW) == "A dog runs. aesthetic score: 5.5, motion score: 0.4, camera motion: pan left"
    assert tagged({"motion_score": 0.4}, caption="a dog") == "a dog, motion score: 0.4"
    assert tagged({"motion_score": 0.4}, caption="a dog\n") == "a dog, motion score: 0.4"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"aesthetic_score": 5.0}, "aesthetic score: 5.0"),
        ({"motion_score": 0.4126}, "motion score: 0.41"),
        ({"motion_score": 0.0}, "motion score: 0"),
        ({"motion_score": np.float32(0.03)}, "motion score: 0.03"),
        ({"camera_motion": ["zoom_in", "pan_left"]}, "camera motion: pan left and zoom in"),
        ({"camera_motion": ["roll_ccw"]}, "camera motion: roll counterclockwise"),
        ({"camera_motion": ["static"]}, "camera motion: static"),
        ({"camera_motion": ["shake"]}, "camera motion: shake"),
    ],
)
def test_a_score_is_said(row: dict[str, Any], said: str) -> None:
    assert tagged(row) == f"A dog runs. {said}"


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"aesthetic_score": None, "motion_score": None, "camera_motion": None},
        {"aesthetic_score": float("nan"), "motion_score": np.float32("nan")},
        {"camera_motion": []},
        {"camera_motion": ["undetermined"]},
        {"aesthetic_score": "high", "motion_score": [1.0], "camera_motion": 7},  # by others
        {"camera_motion": ["dolly"]},
        {"motion_score": float("inf")},
        {"motion_score": 10**400, "aesthetic_score": True, "camera_motion": {"pan_left": 0.9}},
    ],
)
def test_what_is_not_known_is_not_said(row: dict[str, Any]) -> None:
    assert tagged(row) == "A dog runs."


def test_no_caption_gets_no_tags() -> None:
    assert tagged(ROW, caption="") == ""


def test_each_tag_is_dropped_for_itself_as_often_as_is_asked() -> None:
    generator = np.random.default_rng(0)
    texts = [with_tags("A dog.", ROW, generator, dropout=0.25) for _ in range(4000)]
    kept = np.array([[tag in text for tag in TAGS] for text in texts])
    assert kept.mean(axis=0) == pytest.approx([0.75] * 3, abs=0.03)  # four standard errors
    assert kept.all(axis=1).mean() == pytest.approx(0.75**3, abs=0.035)
    assert (~kept).all(axis=1).mean() == pytest.approx(0.25**3, abs=0.01)


def test_dropout_of_1_drops_all() -> None:
    assert {tagged(ROW, dropout=1, seed=seed) for seed in range(50)} == {"A dog runs."}


def test_the_same_generator_gives_the_same_and_what_a_row_lacks_changes_nothing_for_the_next() -> None:
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    with_tags("A dog.", ROW, one, dropout=0.5)
    with_tags("", {}, other, dropout=0.5)
    rest = [[with_tags("A dog.", ROW, g, dropout=0.5) for _ in range(20)] for g in (one, other)]
    assert rest[0] == rest[1]
    assert len(set(rest[0])) > 1


def test_what_makes_no_sense_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        tagged(ROW, dropout=1.5)
