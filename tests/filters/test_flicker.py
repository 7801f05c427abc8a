"""Flicker that was put into pans whose speed is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from curation.painting import paint
from filters.flicker import Flicker

HEIGHT, WIDTH, COUNT, FINER = 144, 256, 12, 4


def panned(px: float, *, background: str = "green meadow", levels: float = 0.0) -> np.ndarray:
    """Grey frames of a pan by so many px a frame, every other one brighter by twice ``levels``."""
    world = paint((WIDTH + round(px * COUNT) + 8) * FINER, HEIGHT * FINER, background, 3)
    frames = []
    for i in range(COUNT):
        to = np.array([[1, 0, px * i * FINER], [0, 1, 0]], np.float64)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        large = cv2.warpAffine(world, to, (WIDTH * FINER, HEIGHT * FINER), flags=flags)
        grey = cv2.cvtColor(cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        frames.append(np.clip(grey * 0.8 + 20 + (levels if i % 2 else -levels), 0, 255).round().astype(np.uint8))
    return np.stack(frames)


def score(frames: np.ndarray, fps: float = 24.0) -> float | None:
    value: float | None = Flicker().score(frames, np.arange(len(frames)) / fps)
    return value


@pytest.mark.parametrize("px", [0.0, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("background", ["desert", "grey harbour"])
def test_motion_is_no_flicker(px: float, background: str) -> None:
    frames = panned(px, background=background)
    changed = np.abs(np.diff(frames.astype(float), axis=0)).mean() / 255
    assert score(frames) < 0.001  # type: ignore[operator]
    assert (changed > 0.01) == (px > 0)  # without the flow it would be


@pytest.mark.parametrize("px", [0.0, 3.0])
@pytest.mark.parametrize("levels", [5.0, 10.0])
def test_light_that_comes_and_goes_has_the_strength_that_it_was_given(px: float, levels: float) -> None:
    assert score(panned(px, levels=levels)) == pytest.approx(2 * levels / 255, rel=0.02)


def test_every_frame_counts_so_that_flicker_between_two_of_a_grid_is_seen() -> None:
    assert score(panned(0.0, levels=5.0), fps=240.0) == pytest.approx(10 / 255, rel=0.02)
    assert Flicker.frames.fps is not None
    assert Flicker.frames.fps > 240


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 144, 256), (5, 8, 256)])
def test_what_shows_no_flicker_is_unknown(shape: tuple[int, int, int]) -> None:
    """No frames, a single one, and pictures without room for the flow's patches."""
    assert score(np.zeros(shape, np.uint8)) is None
