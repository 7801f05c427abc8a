"""Quality measures on pictures of known exposure, sharpness and bars."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from curation.painting import paint
from filters.quality import Quality, bars


def still(height: int = 360, width: int = 640, count: int = 4) -> np.ndarray:
    grey = cv2.cvtColor(paint(width, height, "desert", seed=1), cv2.COLOR_RGB2GRAY)
    return np.stack([np.roll(grey, 3 * i, axis=1) for i in range(count)])


def score(frames: np.ndarray) -> dict[str, object]:
    return Quality().score(frames, np.arange(len(frames)) / 2.0)


@pytest.mark.parametrize(("level", "exposure"), [(0, 0.0), (51, 0.2), (128, 0.502), (255, 1.0)])
def test_exposure_is_the_mean_grey_level(level: int, exposure: float) -> None:
    frames = np.full((3, 36, 64), level, np.uint8)
    assert score(frames)["exposure"] == pytest.approx(exposure, abs=0.001)
    assert score(frames)["clipped_share"] == (1.0 if level in (0, 255) else 0.0)


def test_a_white_that_is_coded_coarsely_is_hardly_less_clipped() -> None:
    frames = np.full((3, 360, 640), 255, np.uint8)
    frames[:, :, :320] = 120
    noise = np.abs(np.random.default_rng(0).normal(0, 2.5, frames.shape))
    coarse = np.clip(frames - noise, 0, 255).astype(np.uint8)
    assert score(frames)["clipped_share"] == 0.5
    assert score(coarse)["clipped_share"] == pytest.approx(0.5, rel=0.1)
    assert score(np.full((3, 36, 64), 240, np.uint8))["clipped_share"] == 0.0


def test_blur_lowers_sharpness_and_flat_pictures_have_none() -> None:
    frames = still()
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in frames])
    assert score(blurred)["sharpness"] < score(frames)["sharpness"] / 2  # type: ignore[operator]
    assert score(np.full((3, 36, 64), 90, np.uint8))["sharpness"] is None


def test_sharpness_does_not_depend_on_contrast() -> None:
    frames = np.clip((still() - 150.0) * 3 + 128, 0, 255).astype(np.uint8)
    faint = np.round(frames * 0.7 + 40).astype(np.uint8)
    assert score(faint)["sharpness"] == pytest.approx(score(frames)["sharpness"], rel=0.1)


@pytest.mark.parametrize(
    ("left", "top", "right", "bottom"), [(0, 0, 0, 0), (0, 45, 0, 45), (80, 0, 80, 0), (0, 0, 0, 36), (64, 18, 32, 0)]
)
@pytest.mark.parametrize("level", [16, 128, 255])
def test_bars_are_found_to_the_pixel(left: int, top: int, right: int, bottom: int, level: int) -> None:
    frames = 60 + still() // 4
    frames[:, :top] = frames[:, 360 - bottom :] = level
    frames[:, :, :left] = frames[:, :, 640 - right :] = level
    assert bars(frames) == pytest.approx((left / 640, top / 360, right / 640, bottom / 360))
    area = 1 - (1 - (left + right) / 640) * (1 - (top + bottom) / 360)
    assert score(frames)["border_area"] == pytest.approx(area)


@pytest.mark.parametrize("level", [0, 255])
def test_a_bar_into_which_a_codec_smeared_the_picture_ends_where_it_did(level: int) -> None:
    frames = 60 + still() // 3
    frames[:, :45] = level
    picture = frames.astype(np.float32)
    ripple = np.random.default_rng(1).normal(0, 1, picture[:, 45].shape)
    for line, part in ((44, 0.15), (43, 0.08), (42, 0.03)):
        picture[:, line] = level + (picture[:, 46] - level) * part * (1 + 0.3 * ripple)
    assert bars(np.clip(picture, 0, 255).astype(np.uint8))[1] == pytest.approx(45 / 360)


def test_a_dark_edge_that_moves_is_no_bar() -> None:
    frames = np.maximum(still(), 60)
    for i, frame in enumerate(frames):
        frame[: 20 + 10 * i] = 10 * (i % 2) + 5
    assert bars(frames)[1] <= 20 / 360


def test_a_clear_sky_is_no_bar() -> None:
    frames = still()
    frames[:, :120] = (200 + np.arange(120) // 8)[None, :, None]
    assert bars(frames) == (0.0, 0.0, 0.0, 0.0)


def test_the_margin_of_a_slide_is_no_bar() -> None:
    frames = np.full((4, 360, 640), 240, np.uint8)
    for i, frame in enumerate(frames):
        cv2.putText(frame, f"point {i}", (80, 200), cv2.FONT_HERSHEY_SIMPLEX, 3, 0, 8)
    assert bars(frames) == (0.0, 0.0, 0.0, 0.0)


def test_a_black_picture_has_no_bars() -> None:
    assert bars(np.zeros((3, 36, 64), np.uint8)) == (0.0, 0.0, 0.0, 0.0)


def test_no_frames_are_unknown() -> None:
    assert set(score(np.empty((0, 0, 0), np.uint8)).values()) == {None}
