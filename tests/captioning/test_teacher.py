"""The demo's teacher: right about what can be seen in films, and blind to everything else."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning import teacher
from captioning.prompts import load_prompt
from captioning.requests import Request
from captioning.world import DIRECTIONS, Scene, attributes_of, draw, to_jpeg, write_films
from curation.lessons import Pair, School, agreement
from curation.progress import Progress
from curation.table import Store

SCENE = Scene(shape="ring", colour="white", direction="up", background="desert", camera="static", letters=False)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    """Ten films of fifty clips, captioned by version 1. Do not change it."""
    school = School(tmp_path_factory.mktemp("school"), "local", films=10)
    school.film()
    school.caption("v1", "lessons", progress=Progress(quiet=True))
    return school


@pytest.fixture(scope="module")
def rows(school: School) -> list[dict[str, Any]]:
    """The clips of the ten films, in no order."""
    return [row for _, part in Store(school.folder / "lessons-v1").parts("clips") for row in part.to_pylist()]


@pytest.fixture(scope="module")
def films(school: School) -> dict[str, list[Scene]]:
    return write_films(school.folder / "lessons", school.films, seed=1)


def pictures(scene: Scene, seed: int = 0) -> Request:
    return Request(prompt="", images=tuple(to_jpeg(picture) for picture in draw(scene, seed=seed)))


@pytest.mark.slow
def test_every_scene_of_a_film_becomes_a_clip_of_two_seconds(
    rows: list[dict[str, Any]], films: dict[str, list[Scene]], school: School
) -> None:
    places = collections.Counter((Path(row["video"]).name, row["start_s"], row["duration_s"]) for row in rows)
    assert places == {(name, 2.0 * i, 2.0): 1 for name in films for i in range(50)}
    sheets = collections.Counter(
        clip_id
        for _, frames in Store(school.folder / "lessons-v1").parts("frames")
        for clip_id in frames["clip_id"].to_pylist()
    )
    assert sheets == {row["clip_id"]: 8 for row in rows}


@pytest.mark.slow
def test_the_teacher_is_right_about_98_in_100_clips_of_encoded_films(
    rows: list[dict[str, Any]], films: dict[str, list[Scene]]
) -> None:
    """Clips whose shape is behind the letters all the time count as wrong."""
    right: collections.Counter[str] = collections.Counter()
    for row in rows:
        scene = films[Path(row["video"]).name][round(row["start_s"] / 2)]
        said = attributes_of(row["caption"]) if row["caption"] else {}
        right.update(name for name, value in said.items() if value == str(getattr(scene, name)))
        right["caption"] += row["caption"] == scene.caption
    shares = {name: count / len(rows) for name, count in right.items()}
    assert len(rows) == 500
    assert {*shares} == {"shape", "colour", "direction", "background", "camera", "letters", "caption"}
    assert min(shares.values()) >= 0.98, shares


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_reversed_pictures_turn_the_direction(direction: str) -> None:
    request = pictures(dataclasses.replace(SCENE, direction=direction), seed=5)
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[direction]
    assert teacher.motion(request) == f"It moves {direction}."
    assert teacher.motion(dataclasses.replace(request, images=request.images[::-1])) == f"It moves {opposite}."


@pytest.mark.parametrize("camera", ["pans left", "pans right"])
def test_the_camera_is_told_from_the_shape(camera: str) -> None:
    scene = dataclasses.replace(SCENE, camera=camera, letters=True)
    assert teacher.motion(pictures(scene)) == f"It moves up. The camera {camera}."


def test_one_picture_says_how_things_look() -> None:
    assert teacher.frame(pictures(SCENE)) == "A white ring before a desert."
    lettered = dataclasses.replace(SCENE, letters=True, shape="cross", colour="red")
    assert teacher.frame(pictures(lettered, seed=1)) == "A red cross before a desert. There is text."


def test_nothing_is_made_up_where_no_shape_is() -> None:
    empty = to_jpeg(np.full((48, 48, 3), (88, 142, 206), np.uint8))
    assert teacher.frame(Request(prompt="", images=(empty,))) == "A blue sky."
    with pytest.raises(ValueError, match="no shape"):
        teacher.motion(Request(prompt="", images=(empty,) * 8))


def test_the_summary_is_of_the_notes_alone_and_keeps_what_most_of_them_say() -> None:
    notes = {
        "short_caption": "It moves left. The camera pans right.",
        "frame_captions": "0.1: A red bar before a blue sky.\n0.6: A desert.\n1.1: A red ring before a blue sky. "
        "There is text.\n1.6: A red ring before a green meadow. There is text.",
        "camera": "",
    }
    prompt = load_prompt("summary-1", tuple(notes)).fill(notes)
    said = teacher.summary(Request(prompt=prompt))
    assert said == "A red ring moves left across a blue sky. The camera pans right. There is text."
    with pytest.raises(ValueError, match="the notes"):
        teacher.summary(Request(prompt=load_prompt("summary-1", tuple(notes)).fill(notes | {"frame_captions": ""})))


def test_films_that_are_there_stay(tmp_path: Path) -> None:
    films = write_films(tmp_path, 2, clips=2)
    (tmp_path / "film_001.mp4").unlink()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in ["film_000.mp4"]}
    assert write_films(tmp_path, 2, clips=2) == films
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film_000.mp4", "film_001.mp4"]


def test_agreement_is_counted_by_attribute() -> None:
    captions = [
        ("A red bar moves up across a desert.", "A red bar moves up across a desert."),
        ("A red bar moves up across a desert.", "A blue bar moves up across a desert. There is text."),
    ]
    pairs = [
        Pair(video="v", start_s=0, end_s=2, clip_id=str(i), sheet=Path(), first=first, second=second)
        for i, (first, second) in enumerate(captions)
    ]
    shares = {"shape": 1, "colour": 0.5, "direction": 1, "background": 1, "camera": 1, "letters": 0.5}
    assert agreement(pairs) == {**shares, "every word": 0.5}
