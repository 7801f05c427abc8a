"""The claim of the README on what version 2 costs."""

from __future__ import annotations

import pytest

from benchmarks.caption_cost import Counter, first, second, sheet
from captioning.question import Question


@pytest.fixture(scope="module")
def counter() -> Counter:
    return Counter()


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1440, 1080), (1080, 1080), (1080, 1920), (640, 480)])
@pytest.mark.parametrize("seconds", [2, 3.5, 5, 10])  # at 3.5 s, 7 frames, both see all of them
def test_version_2_takes_a_sixth_of_the_calls_and_less_than_a_fifth_of_the_tokens(
    seconds: float, width: int, height: int, counter: Counter
) -> None:
    frames = sheet(seconds, width, height)
    one, two = first(counter, frames), second(counter, frames, Question())
    assert (one.calls, two.calls) == (6, 1)
    assert 0.125 < two.tokens / one.tokens < 0.195


@pytest.mark.parametrize(("width", "height"), [(480, 360), (320, 240)])
def test_of_small_pictures_it_takes_more(width: int, height: int, counter: Counter) -> None:
    shares = []
    for seconds in (2, 3.5, 5, 10):
        frames = sheet(seconds, width, height)
        shares.append(second(counter, frames, Question()).tokens / first(counter, frames).tokens)
    assert 0.2 < max(shares) < 0.295
