"""Gradual transitions and what looks like them, on drawn pictures whose every frame is known."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from benchmarks.joins import Join, mix
from curation.footage import Film, Shot, pictures
from curation.likeness import SIZE, shrink
from curation.shots import Cut, ShotDetector

FPS = 25
OLD, NEW = Shot(seconds=3.0, camera="pan_right", camera_speed=0.1), Shot(seconds=3.0, background="desert")


def cuts_of(frames: np.ndarray, *, fps: float = FPS, first: int = 0) -> list[Cut]:
    """Cuts in N H W 3 (BGR); ``first`` is the index of the first frame."""
    shots = ShotDetector()
    found = [cut for i, frame in enumerate(frames, first) for cut in shots.push(i, i / fps, frame)]
    return found + shots.finish()


def filmed(shot: Shot) -> np.ndarray:
    return np.stack([shrink(frame[..., ::-1]) for frame in pictures(Film(name="x.mp4", shots=(shot,)))])


def joined(kind: str, count: int) -> tuple[np.ndarray, int, int]:
    """Two shots, the first and the end of the mixed frames between them."""
    old, new = filmed(OLD), filmed(NEW)
    first = len(old) - count
    mixed = [
        mix(Join(kind=kind, count=count), old[first + k], new[k], progress=(k + 1) / (count + 1))[0]
        for k in range(count)
    ]
    return np.concatenate([old[:first], np.stack(mixed), new[count:]]), first, first + count


@pytest.mark.parametrize("count", [8, 16, 30])
@pytest.mark.parametrize(
    "kind", ["dissolve", "fade through black", "fade through white", "wipe left", "wipe down", "wipe iris in"]
)
def test_a_gradual_transition_is_left_out_with_its_extent(kind: str, count: int) -> None:
    frames, first, end = joined(kind, count)
    cuts = cuts_of(frames)
    assert len(cuts) == 1
    # So that no mixed frame is left in, a little more is left out: around a short fade up to a second.
    rim = 24 if (kind, count) == ("fade through black", 8) else 6 + count // 6
    assert first - rim <= cuts[0].end <= first + max(2, count // 8)
    assert end - max(2, count // 8) <= cuts[0].start <= end + rim


def lit(gain: Callable[[int], float], towards: float = 0.0) -> np.ndarray:
    """One shot in changing light."""
    frames = filmed(Shot(seconds=5.0, camera="pan_right", camera_speed=0.1))
    levels = [frame * gain(i) + towards * (1 - gain(i)) for i, frame in enumerate(frames)]
    return np.clip(np.stack(levels), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flash_is_no_cut(length: int) -> None:
    assert cuts_of(lit(lambda i: 0.1 if 50 <= i < 50 + length else 1.0, towards=255)) == []


@pytest.mark.parametrize("period", [2, 4, 6])
def test_a_strobe_is_no_cut(period: int) -> None:
    assert cuts_of(lit(lambda i: 0.1 if 40 <= i < 80 and i % period < period // 2 else 1.0)) == []


def test_light_that_is_turned_down_slowly_is_no_transition() -> None:
    assert cuts_of(lit(lambda i: float(np.interp(i, [50, 75], [1.0, 0.4])))) == []


@pytest.mark.parametrize("length", [6, 10, 16])
def test_light_that_nearly_goes_out_is_no_transition(length: int) -> None:
    """Little structure is left where an eighth of the light is."""
    place = shrinkable(np.random.default_rng(2), SIZE[1] * 4, SIZE[0] * 40)
    panned = (shrink(place[:, i * 3 : i * 3 + SIZE[0] * 4]) for i in range(130))
    dimmed = [view * np.interp(i, [50, 50 + length], [1.0, 0.12]) for i, view in enumerate(panned)]
    assert cuts_of(np.stack(dimmed).astype(np.uint8)) == []


@pytest.mark.parametrize("length", [15, 25, 35])
def test_text_that_is_written_on_black_is_no_fade(length: int) -> None:
    """One letter after the other."""
    frames, words = [], "It is written here"
    for i in range(5 * FPS):
        page = np.zeros((SIZE[1] * 10, SIZE[0] * 10, 3), np.uint8)
        shown = words[: round(np.interp(i, [2, 2 + length], [0, len(words)]))]
        cv2.putText(page, shown, (20, 200), cv2.FONT_HERSHEY_DUPLEX, 2.0, (255, 255, 255), 4, cv2.LINE_AA)
        frames.append(shrink(page))
    assert cuts_of(np.stack(frames)) == []


def test_light_of_another_colour_is_no_cut() -> None:
    """It goes from red to blue at once, and the grey levels of what it falls on stay as they were."""
    place = shrinkable(np.random.default_rng(4), SIZE[1] * 4, SIZE[0] * 4) * 0.7
    grey = shrink(place.astype(np.uint8)).mean(axis=2, keepdims=True)
    levels = np.array([0.114, 0.587, 0.299])  # that luma gives to blue, green and red
    red, blue = (tint / (tint @ levels) for tint in (np.array([0.3, 0.9, 1.3]), np.array([1.3, 0.9, 0.5])))
    frames = [np.clip(grey * (red if i < 50 else blue), 0, 255) for i in range(100)]
    assert cuts_of(np.stack(frames).astype(np.uint8)) == []


@pytest.mark.parametrize("speed", [0.5, 1.5])
def test_a_fast_pan_is_no_cut(speed: float) -> None:
    """``speed`` in picture widths per second, over a place that is ten pictures wide."""
    random = np.random.default_rng(3)
    place = shrinkable(random, SIZE[1] * 4, SIZE[0] * 40)
    step = speed * SIZE[0] * 4 / FPS
    frames = [shrink(place[:, int(i * step) : int(i * step) + SIZE[0] * 4]) for i in range(100)]
    assert cuts_of(np.stack(frames)) == []


@pytest.mark.parametrize("count", [10, 16, 24])
def test_a_slide_by_way_of_the_mirrored_picture_is_a_transition(count: int) -> None:
    """Such a slide and a camera that is thrown round look the same; what would hide one must not hide the other."""
    old, new = filmed(OLD), filmed(NEW)
    way = np.concatenate([old[-1], old[-1][:, ::-1], new[0]], axis=1)
    done = np.arange(1, count + 1) / (count + 1)
    left = done * done * (3 - 2 * done) * 2 * SIZE[0]
    slid = [
        cv2.warpAffine(way, np.array([[1, 0, -at], [0, 1, 0]]), SIZE, flags=cv2.INTER_LINEAR) for at in left.tolist()
    ]
    (cut,) = cuts_of(np.concatenate([old, np.stack(slid), new]))
    assert len(old) - 6 - count // 6 <= cut.end <= len(old) + count // 2
    assert len(old) + count // 2 <= cut.start <= len(old) + count + 6 + count // 6


def test_an_eased_push_is_a_transition() -> None:
    """It moves as a camera does that is thrown round."""
    old, new = filmed(OLD), filmed(NEW)
    join = Join(kind="push right", count=12, eased=True)
    mixed = [mix(join, old[-1], new[0], progress=(k + 1) / 13)[0] for k in range(12)]
    (cut,) = cuts_of(np.concatenate([old, np.stack(mixed), new]))
    assert cut.end <= len(old) + 2
    assert cut.start >= len(old) + 10


def shrinkable(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A place with large and small things in it, H W 3."""
    place = np.zeros((height, width, 3), np.float32)
    for cell in (64, 24, 8):
        coarse = random.random((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        place += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * cell**0.5
    return np.clip(place / place.max() * 255, 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_it_makes_no_difference_where_feeding_begins() -> None:
    film = np.concatenate([joined(kind, count)[0] for kind, count in (("dissolve", 20), ("wipe left", 12))] * 3)
    whole = cuts_of(film)
    assert len(whole) > 6
    for first in (97, 230):
        later = first + 10 * FPS
        assert [c for c in cuts_of(film[first:], first=first) if c.end >= later] == [c for c in whole if c.end >= later]


@pytest.mark.parametrize("times", [2, 4])
def test_a_higher_frame_rate_changes_nothing(times: int) -> None:
    """Each picture shown several times: a cut lies at the same time, a transition is left out."""
    film = np.concatenate([joined("dissolve", 20)[0], filmed(OLD)])
    slow, fast = cuts_of(film), cuts_of(np.repeat(film, times, axis=0), fps=FPS * times)
    assert len(slow) == len(fast) == 2
    assert fast[1] == Cut(slow[1].end * times, slow[1].start * times)
    assert abs(fast[0].end - slow[0].end * times) <= 2 * times
    assert abs(fast[0].start - slow[0].start * times) <= 2 * times
