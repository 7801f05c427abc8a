"""Cuts: exact on generated truth and on annotated real clips, none at exposure jumps, pans and fades."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.annotated import annotated
from benchmarks.transitions import Film as Annotated
from benchmarks.verdict import judge, total
from curation.footage import DEMO, Film, Shot, pictures
from curation.likeness import SIZE
from curation.shots import Cut, DetectorName, ShotDetector
from curation.video import Video


def cuts_of_frames(frames: list[np.ndarray], detector: DetectorName = "adaptive") -> list[int]:
    shots = ShotDetector(detector)
    found = [
        cut for i, frame in enumerate(frames) for cut in shots.push(i, i / 25, np.ascontiguousarray(frame[..., ::-1]))
    ]
    return [cut.start for cut in found + shots.finish()]


def cuts_of_file(path: Path, detector: DetectorName = "adaptive") -> list[Cut]:
    shots, found = ShotDetector(detector), []
    with Video(path) as video:
        for frame in video.frames():
            found += shots.push(frame.index, frame.t_s, frame.sketch(*SIZE))
    return found + shots.finish()


@pytest.mark.parametrize("film", [film for film in DEMO if not film.dissolve_s], ids=lambda film: film.name)
def test_cuts_of_generated_films_are_found_at_their_frame(film: Film, footage: Path, truth: dict[str, Any]) -> None:
    expected = [t["start_frame"] for t in truth[film.name]["transitions"]]
    assert [cut.start for cut in cuts_of_file(footage / film.name)] == expected


def test_a_dissolve_is_left_out_with_its_extent(footage: Path, truth: dict[str, Any]) -> None:
    (true,) = truth["dissolve.mp4"]["transitions"]
    (cut,) = cuts_of_file(footage / "dissolve.mp4")
    assert true["start_frame"] - 6 <= cut.end <= true["start_frame"] + 2
    assert true["end_frame"] - 2 <= cut.start <= true["end_frame"] + 6


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_detectors_agree_on_plain_cuts(detector: DetectorName) -> None:
    film = Film(name="x.mp4", shots=(Shot(), Shot(background="desert"), Shot(background="blue sky")))
    assert cuts_of_frames(list(pictures(film)), detector) == [48, 96]


def test_no_detector_no_cut() -> None:
    film = Film(name="x.mp4", shots=(Shot(), Shot(background="desert")))
    assert cuts_of_frames(list(pictures(film)), "none") == []


@pytest.mark.parametrize("gain", [0.6, 0.75, 1.3])
def test_an_exposure_jump_is_no_cut(gain: float) -> None:
    frames = list(pictures(Film(name="x.mp4", shots=(Shot(seconds=3.0),))))
    frames[36:] = [np.clip(frame * gain + 4, 0, 255).astype(np.uint8) for frame in frames[36:]]
    assert cuts_of_frames(frames) == []


def test_noise_in_near_black_frames_is_no_cut() -> None:
    random = np.random.default_rng(0)
    frames = [random.integers(0, 4 + (i == 20), (144, 256, 3)).astype(np.uint8) for i in range(40)]
    assert cuts_of_frames(frames) == []


@pytest.mark.parametrize(("detector", "expected"), [("threshold", [84, 167]), ("none", [])])
def test_fades_through_black_are_cut_in_the_middle(
    detector: DetectorName, expected: list[int], real_videos: Path
) -> None:
    """The golden values of PySceneDetect's own tests."""
    assert [cut.start for cut in cuts_of_file(real_videos / "psd_fades.mp4", detector)] == expected


@pytest.mark.slow
def test_hard_cuts_of_real_clips_are_found_and_few_are_false(real_videos: Path, tmp_path: Path) -> None:
    """Every annotated cut within one frame; of the cuts found at most one in twenty is not annotated."""
    verdict = total(judge(film, clips_of(film)) for film in annotated(real_videos, tmp_path))
    assert [(film.name, cut.first) for film, cut, what in verdict.hard if what == "missed"] == []
    assert verdict.precision() >= 0.95
    assert len(verdict.false_gaps) <= 1


def clips_of(film: Annotated) -> list[tuple[int, int]]:
    cuts = cuts_of_file(film.path)
    firsts, ends = [0, *(cut.start for cut in cuts)], [*(cut.end for cut in cuts), film.num_frames]
    return [(first, end) for first, end in zip(firsts, ends, strict=True) if first < end]
