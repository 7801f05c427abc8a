"""Colourfulness of pictures whose colours are known."""

from __future__ import annotations

import numpy as np
import pytest

from filters.colour import Colour


def score(frames: np.ndarray) -> float | None:
    value: float | None = Colour().score(frames, np.arange(len(frames)) / 2.0)
    return value


def test_grey_has_no_colour() -> None:
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    assert score(np.broadcast_to(ramp[None, None, :, None], (3, 90, 160, 3))) == 0.0


def test_pure_colours_have_the_value_of_the_formula() -> None:
    """Half red, half blue: rg is 255 and 0, yb is 127.5 and -255."""
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:45, :, 0] = frame[45:, :, 2] = 255
    spread, mean = np.hypot(127.5, 191.25), np.hypot(127.5, -63.75)
    assert score(frame[None]) == pytest.approx(spread + 0.3 * mean, rel=1e-4)


def test_more_saturation_is_more_colourful() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2, 90, 160, 3)).astype(float)
    grey = colours.mean(axis=-1, keepdims=True)
    values = [score((grey + k * (colours - grey)).astype(np.uint8)) for k in (0.2, 0.5, 1.0)]
    assert values == sorted(values)  # type: ignore[type-var]
    assert values[2] == pytest.approx(5 * values[0], rel=0.1)  # type: ignore[operator]


def test_no_frames_are_unknown() -> None:
    assert score(np.empty((0, 0, 0, 3), np.uint8)) is None
