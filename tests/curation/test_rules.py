"""Rules: ranges, unknown values, the order of reasons."""

from __future__ import annotations

import math

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


def test_the_first_broken_rule_is_the_reason() -> None:
    clips = clip_rows(3, a=pa.array([0.0, 1.0, 1.0]), b=pa.array([0.0, 0.0, 1.0]))
    judged = judge(clips, {"a": Rule(min=0.5), "b": Rule(min=0.5)})
    assert judged["status"].to_pylist() == ["rejected", "rejected", "kept"]
    assert judged["reason"].to_pylist() == ["a", "b", None]


def test_failed_clips_stay_failed() -> None:
    clips = clip_rows(1, a=pa.array([0.0]))
    clips = clips.set_column(clips.schema.get_field_index("status"), "status", pa.array(["failed"]))
    assert judge(clips, {"a": Rule(min=0.5)})["status"].to_pylist() == ["failed"]
