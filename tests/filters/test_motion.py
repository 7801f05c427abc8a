"""Motion against panned pictures whose speed is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from curation.painting import paint
from filters import motion
from filters.motion import Motion

HEIGHT, WIDTH = 54, 96


def panned(px_per_frame: float, fps: float, seconds: float = 2.0, height: int = 360) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames as the decode pass would give them for a pan of a 640x360 picture, on the filter's time grid."""
    scale = HEIGHT / height
    step = round(fps / Motion().frames.fps)  # type: ignore[operator]
    count = int(seconds * fps) // step
    world = paint(int(WIDTH / scale + px_per_frame * fps * seconds) + 2, height, "green meadow", seed=3)
    frames = []
    for i in range(count):
        left = px_per_frame * i * step
        window = cv2.warpAffine(
            world,
            np.array([[1, 0, left], [0, 1, 0]], np.float64),
            (int(WIDTH / scale), height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        frames.append(
            cv2.cvtColor(cv2.resize(window, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        )
    return np.stack(frames), np.arange(count) * step / fps


def seen(lefts: list[float], height: int = 360) -> np.ndarray:
    """Grey frames of a window that stands so many pixels to the right over a picture of ``height``."""
    scale = HEIGHT / height
    world = cv2.cvtColor(paint(int(WIDTH / scale + max(lefts)) + 2, height, "green meadow", seed=3), cv2.COLOR_RGB2GRAY)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    frames = []
    for left in lefts:
        window = cv2.warpAffine(
            world, np.array([[1, 0, left], [0, 1, 0]], np.float64), (int(WIDTH / scale), height), flags=how
        )
        frames.append(cv2.resize(window, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


@pytest.mark.parametrize(("source", "shown"), [(24, 60), (30, 24), (30, 60), (60, 24), (24, 30)])
@pytest.mark.parametrize("truth", [0.02, 0.15, 0.6])
def test_footage_keeps_its_speed_when_it_is_shown_at_another_frame_rate(source: int, shown: int, truth: float) -> None:
    """Frames are repeated or dropped, so the picture is as it was up to a frame before the time that it has."""
    times = np.ceil(np.arange(25) / 8 * shown - 1e-6) / shown
    content = np.floor(times * source + 1e-6) / source
    score = Motion().score(seen([truth * 360 * t for t in content]), times)
    for name in ("motion_score", "camera_speed"):
        assert score[name] == pytest.approx(truth, rel=0.04), name
    assert score["camera_motion"] == ["pan_right"]


@pytest.mark.parametrize("late", range(8))
def test_a_pan_that_goes_for_a_moment_each_second_is_not_missed(late: int) -> None:
    """Whichever part of a second it is: three eighths of it, at 0.6 heights a second."""
    moving = np.isin(np.arange(24) % 8, [late, (late + 1) % 8, (late + 2) % 8])
    lefts = np.concatenate([[0.0], np.cumsum(moving * 0.6 * 360 / 8)])
    score = Motion().score(seen(lefts.tolist()), np.arange(25) / 8)
    assert score["motion_score"] == pytest.approx(0.6 * 3 / 8, rel=0.05)


@pytest.mark.parametrize("px_per_frame", [0.5, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("fps", [24.0, 30.0, 60.0])
def test_a_pan_has_its_true_speed_in_frame_heights_per_second(px_per_frame: float, fps: float) -> None:
    truth = px_per_frame * fps / 360
    score = Motion().score(*panned(px_per_frame, fps))
    assert score["motion_score"] == pytest.approx(truth, rel=0.05, abs=0.003)
    assert score["still_share"] == 0.0


def test_the_same_pan_at_another_frame_rate_has_the_same_score() -> None:
    slow, fast = (Motion().score(*panned(120 / fps, fps))["motion_score"] for fps in (24.0, 60.0))
    assert slow == pytest.approx(fast, rel=0.05)


def test_a_still_picture_is_still_despite_noise() -> None:
    frames, times = panned(0.0, 24.0)
    noise = np.random.default_rng(0).normal(0, 1.5, frames.shape)
    noisy = np.clip(frames + noise, 0, 255).astype(np.uint8)
    score = Motion().score(noisy, times)
    assert score["still_share"] == 1.0
    assert score["motion_score"] < 0.02


def test_a_small_moving_thing_before_a_still_background_is_not_still() -> None:
    frames, times = panned(0.0, 24.0)
    for i, frame in enumerate(frames):
        cv2.circle(frame, (30 + 4 * i, 54), 10, 255, -1)
    score = Motion().score(frames, times)
    assert score["still_share"] == 0.0
    assert score["motion_score"] < 0.05


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_frames_are_unknown_not_zero(count: int) -> None:
    frames, times = panned(1.0, 24.0)
    assert set(Motion().score(frames[:count], times[:count]).values()) == {None}


@pytest.mark.parametrize("shape", [(5, 96), (8, 96), (15, 96), (96, 15), (1, 1)])
def test_a_strip_too_narrow_for_flow_is_unknown(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (17, *shape)).astype(np.uint8)
    assert set(Motion().score(frames, np.arange(17) / 8).values()) == {None}


def test_the_narrowest_strip_with_room_for_flow_is_measured() -> None:
    frames, times = panned(3.0, 24.0)
    assert Motion().score(frames[:, 20:36], times)["motion_score"] is not None


def test_a_long_clip_is_not_taken_for_a_decoder_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[int] = []
    compared: list[int] = []  # after so many signs
    compare = motion._compare

    def watched(*args: Any) -> Any:
        compared.append(len(signs))
        return compare(*args)

    monkeypatch.setattr(motion, "alive", lambda: signs.append(1))
    monkeypatch.setattr(motion, "_compare", watched)
    frames, times = panned(1.0, 24.0)
    Motion().score(frames, times)
    assert len(compared) >= 8
    assert sorted({0, *compared}) == [0, *compared]  # one at least before each
    signs.clear()
    compared.clear()
    motion.unexplained(frames)
    assert len(compared) == len(frames) - 1
    assert sorted({0, *compared}) == [0, *compared]
