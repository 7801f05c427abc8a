"""Noise that was added, measured."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from curation.painting import paint
from filters.noise import Noise


def score(frames: np.ndarray) -> float | None:
    value: float | None = Noise().score(frames, np.arange(len(frames)) / 2.0)
    return value


def noisy(deviation: float, background: str = "blue sky") -> np.ndarray:
    grey = cv2.GaussianBlur(cv2.cvtColor(paint(640, 360, background, seed=2), cv2.COLOR_RGB2GRAY), (0, 0), 2)
    noise = np.random.default_rng(1).normal(0, deviation, (3, 360, 640))
    return np.clip(grey * 0.6 + 50 + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("deviation", [2.0, 4.0, 8.0, 16.0])
@pytest.mark.parametrize("background", ["blue sky", "desert"])
def test_noise_has_the_deviation_that_was_added(deviation: float, background: str) -> None:
    assert score(noisy(deviation, background)) == pytest.approx(deviation, rel=0.1)


def test_a_clean_picture_has_hardly_any_noise() -> None:
    assert score(noisy(0.0)) < 0.6  # type: ignore[operator]


def test_texture_in_a_part_of_the_picture_is_no_noise() -> None:
    frames = noisy(2.0)
    frames[:, :200] = np.random.default_rng(0).integers(40, 200, (200, 640))
    assert score(frames) == pytest.approx(2.0, rel=0.15)


def test_black_bars_do_not_make_a_noisy_picture_clean() -> None:
    frames = noisy(8.0)
    frames[:, :80] = frames[:, 280:] = 0
    assert score(frames) == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("shape", [(0, 0, 0), (2, 8, 8), (2, 360, 640)])
def test_what_shows_no_noise_is_unknown(shape: tuple[int, int, int]) -> None:
    """No frames, frames smaller than a block, and black ones."""
    assert score(np.zeros(shape, np.uint8)) is None
