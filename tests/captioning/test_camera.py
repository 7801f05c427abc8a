"""What the camera does, in words."""

from __future__ import annotations

import itertools

import pytest

from captioning.camera import camera_phrase
from filters.camera import LABELS


@pytest.mark.parametrize(
    ("labels", "phrase"),
    [
        (["static"], "the camera stays still"),
        (["pan_left"], "the camera pans left"),
        (["pan_right"], "the camera pans right"),
        (["tilt_up"], "the camera tilts up"),
        (["tilt_down"], "the camera tilts down"),
        (["zoom_in"], "the camera zooms in"),
        (["zoom_out"], "the camera zooms out"),
        (["roll_cw"], "the camera rolls clockwise"),
        (["roll_ccw"], "the camera rolls counterclockwise"),
        (["shake"], "the camera shakes"),
        (["pan_left", "zoom_in"], "the camera pans left and zooms in"),
        (["pan_right", "pan_left"], "the camera pans left and right"),
        (["pan_right", "pan_left", "shake"], "the camera pans left and right, and shakes"),
        (["tilt_down", "zoom_out", "shake"], "the camera tilts down, zooms out, and shakes"),
        (["undetermined"], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_camera_motion_is_said_in_english(labels: list[str] | None, phrase: str) -> None:
    assert camera_phrase(labels) == phrase


def test_every_label_of_the_filter_has_words_of_its_own() -> None:
    phrases = [camera_phrase([label]) for label in LABELS if label != "undetermined"]
    assert all(phrases)
    assert len(set(phrases)) == len(LABELS) - 1


def test_the_order_of_labels_does_not_matter() -> None:
    labels = ["zoom_in", "pan_left", "shake"]
    assert len({camera_phrase(order) for order in itertools.permutations(labels)}) == 1


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="'dolly'"):
        camera_phrase(["static", "dolly"])
