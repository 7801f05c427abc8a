"""Judging shots: a perfect answer scores 1, and each kind of mistake counts as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.joins import Transition
from benchmarks.shots import evaluate
from benchmarks.transitions import Film
from benchmarks.verdict import clips_of_cuts, judge, listing, reports_of, total


def cut(frame: int) -> Transition:
    return Transition(kind="cut", first=frame, end=frame, core_first=frame, core_end=frame)


def film(**changes: object) -> Film:
    """300 frames: a cut at 100, a dissolve over frames 200 to 219 of which 202 to 217 are its core."""
    dissolve = Transition(kind="dissolve", first=200, end=220, core_first=202, core_end=218)
    facts = {"path": Path("x.mp4"), "fps": 25, "num_frames": 300, "theme": "plain", "transitions": (cut(100), dissolve)}
    return Film(**{**facts, **changes})  # type: ignore[arg-type]


def test_the_perfect_answer_scores_one_and_loses_nothing() -> None:
    verdict = judge(film(), [(0, 100), (100, 200), (220, 300)])
    assert (verdict.precision(), verdict.recall(), verdict.f1()) == (1, 1, 1)
    assert (verdict.excluded(), verdict.seen(), verdict.lost) == (1, 1, 0)
    assert verdict.false_per_10_min() == 0
    assert listing(verdict, {"x": reports_of(300, [(0, 100), (100, 200), (220, 300)])}) == []


@pytest.mark.parametrize(
    ("clips", "recall", "precision"),
    [
        ([(0, 99), (99, 200), (220, 300)], 1, 1),  # one frame early
        ([(0, 101), (101, 200), (220, 300)], 1, 1),  # one frame late
        ([(0, 102), (102, 200), (220, 300)], 0, 0),  # two frames late: missed, and false
        ([(0, 99), (101, 200), (220, 300)], 1, 1),  # a gap of two frames
        ([(0, 100), (100, 150), (150, 200), (220, 300)], 1, 0.5),  # one more
        ([(0, 200), (220, 300)], 0, 1),  # nothing reported, nothing wrong
        ([(0, 100), (100, 200), (200, 210), (210, 300)], 1, 1 / 3),  # cuts within a dissolve
    ],
)
def test_hard_cuts_count_within_one_frame(clips: list[tuple[int, int]], recall: float, precision: float) -> None:
    verdict = judge(film(), clips)
    assert (verdict.recall(), verdict.precision()) == pytest.approx((recall, precision))


@pytest.mark.parametrize(
    ("clips", "excluded", "seen"),
    [
        ([(0, 100), (100, 202), (218, 300)], 1, 1),  # frames that are nearly pure may stay
        ([(0, 100), (100, 203), (218, 300)], 0, 1),  # one mixed frame too many
        ([(0, 100), (100, 210), (210, 300)], 0, 1),  # only a cut in it
        ([(0, 100), (100, 300)], 0, 0),
    ],
)
def test_a_gradual_transition_is_excluded_when_no_clip_holds_its_core(
    clips: list[tuple[int, int]], excluded: float, seen: float
) -> None:
    verdict = judge(film(), clips)
    assert (verdict.excluded(), verdict.seen()) == (excluded, seen)


def test_a_wide_gap_at_a_hard_cut_is_no_hard_cut_and_its_frames_are_lost() -> None:
    verdict = judge(film(), [(0, 95), (105, 200), (220, 300)])
    assert verdict.recall() == 0
    assert [span for _, span in verdict.false_gaps] == [(95, 105)]
    assert verdict.lost == 10


def test_a_gap_that_takes_more_than_the_transition_says_how_much() -> None:
    verdict = judge(film(), [(0, 100), (100, 190), (225, 300)])
    assert (verdict.excluded(), verdict.lost) == (1, 15)
    assert verdict.false_gaps == []


def test_a_cut_after_a_fade_out_may_end_the_gap() -> None:
    fade = Transition(kind="fade out", first=80, end=95, core_first=81, core_end=94)
    dark = film(transitions=(fade, cut(110)), blank=((95, 110),))
    for clips in ([(0, 80), (110, 300)], [(0, 80), (95, 110), (110, 300)]):
        verdict = judge(dark, clips)
        assert (verdict.recall(), verdict.precision(), verdict.excluded(), verdict.lost) == (1, 1, 1, 0)


def test_reports_without_any_transition_are_counted_per_ten_minutes() -> None:
    distractor = film(transitions=(), num_frames=25 * 60 * 5)
    end = distractor.num_frames
    verdict = judge(distractor, [(0, 50), (50, 60), (90, end)])
    assert (len(verdict.false_cuts), len(verdict.false_gaps)) == (1, 1)
    assert verdict.false_per_10_min() == pytest.approx(4)


def test_a_gap_at_the_beginning_or_the_end_is_a_report() -> None:
    assert reports_of(100, [(10, 50), (50, 90)]) == [(0, 10), (50, 50), (90, 100)]
    assert reports_of(100, [(0, 100)]) == []
    assert reports_of(100, []) == [(0, 100)]


def test_reports_where_the_truth_is_unsure_are_not_judged() -> None:
    verdict = judge(film(unsure=((40, 60),)), [(0, 50), (50, 100), (100, 200), (220, 300)])
    assert verdict.precision() == 1


def test_verdicts_add_up_and_every_mistake_is_listed() -> None:
    films = [film(), film(path=Path("y.mp4"))]
    answers = {"x": clips_of_cuts(300, [100]), "y": clips_of_cuts(300, [40, 210])}
    verdict = evaluate(films, lambda film: answers[film.name])
    assert verdict.recall() == 0.5
    assert verdict.precision() == pytest.approx(1 / 3)
    assert (verdict.excluded(), verdict.seen(), verdict.frames) == (0, 0.5, 600)
    lines = listing(verdict, {name: reports_of(300, clips) for name, clips in answers.items()})
    assert [line.split()[0] for line in lines] == ["x", "y", "y", "y", "y"]
    assert any("missed" in line and "cut 100" in line for line in lines)
    assert any("cuts inside (210, 210)" in line for line in lines)


def test_nothing_adds_up_to_a_perfect_verdict() -> None:
    assert total([]).as_dict()["f1"] == 1.0


def test_times_are_turned_into_frames_by_rate_or_by_the_nearest_frame() -> None:
    assert film().frame_at(4.0) == 100
    uneven = film(times=(0.0, 0.1, 0.5, 0.6), num_frames=4)
    assert [uneven.frame_at(t) for t in (0.0, 0.12, 0.45, 0.8)] == [0, 1, 2, 4]
