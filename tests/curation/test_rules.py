"""Rules: ranges, unknown values, the order of reasons."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from curation.rules import Rule, judge
from tests.helpers import clip_rows


@pytest.mark.parametrize(
    ("rule", "value", "keeps"),
    [
        (Rule(min=1.0), 1.0, True),
        (Rule(min=1.0), 0.999, False),
        (Rule(max=1.0), 1.0, True),
        (Rule(max=1.0), 1.001, False),
        (Rule(min=0.0, max=1.0), 0.5, True),
        (Rule(max=1e300), math.inf, False),
        (Rule(min=1.0), None, False),
        (Rule(min=1.0), math.nan, False),
        (Rule(min=1.0, unknown="keep"), None, True),
        (Rule(), None, False),
        (Rule(), "anything", True),
        (Rule(any_of=["static"]), ["static", "shake"], True),
        (Rule(any_of=["static"]), ["pan_left"], False),
        (Rule(none_of=["shake"]), ["static", "shake"], False),
        (Rule(none_of=["shake"]), "static", True),
    ],
)
def test_keeps(rule: Rule, value: object, keeps: bool) -> None:
    assert rule.keeps(value) is keeps


@pytest.mark.parametrize("end", [0.3, 0.7, 1.1, 4.5, -0.3])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_both_ends_belong_to_the_range_as_scores_are_stored(end: float, kind: type[np.floating]) -> None:
    """0.3 is a little more as a float32, 0.7 a little less."""
    at = kind(end)
    below, above = (float(np.nextafter(at, kind(to))) for to in (-np.inf, np.inf))
    assert [Rule(max=end).keeps(value) for value in (below, float(at), above)] == [True, True, False]
    assert [Rule(min=end).keeps(value) for value in (below, float(at), above)] == [False, True, True]


def test_a_float32_column_is_judged_by_the_same_ends() -> None:
    clips = clip_rows(2, a=pa.array([0.3, 0.7], pa.float32()))
    assert judge(clips, {"a": Rule(min=0.3, max=0.7)})["status"].to_pylist() == ["kept", "kept"]


def test_the_first_broken_rule_is_the_reason() -> None:
    clips = clip_rows(3, a=pa.array([0.0, 1.0, 1.0]), b=pa.array([0.0, 0.0, 1.0]))
    judged = judge(clips, {"a": Rule(min=0.5), "b": Rule(min=0.5)})
    assert judged["status"].to_pylist() == ["rejected", "rejected", "kept"]
    assert judged["reason"].to_pylist() == ["a", "b", None]


def test_failed_clips_stay_failed() -> None:
    clips = clip_rows(1, a=pa.array([0.0]))
    clips = clips.set_column(clips.schema.get_field_index("status"), "status", pa.array(["failed"]))
    assert judge(clips, {"a": Rule(min=0.5)})["status"].to_pylist() == ["failed"]
