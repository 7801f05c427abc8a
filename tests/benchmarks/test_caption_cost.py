"""The claim of the README on what version 2 costs."""

from __future__ import annotations

import pytest

from benchmarks.caption_cost import Counter, first, second, sheet
from captioning.question import Question


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1440, 1080)])
@pytest.mark.parametrize("seconds", [2, 5, 10])
def test_version_2_takes_a_sixth_of_the_calls_and_less_than_a_fifth_of_the_tokens(
    seconds: int, width: int, height: int
) -> None:
    counter, frames = Counter(), sheet(seconds, width, height)
    one, two = first(counter, frames), second(counter, frames, Question())
    assert (one.calls, two.calls) == (6, 1)
    assert 0.13 < two.tokens / one.tokens < 0.19
    assert 0.10 < two.prompt / one.prompt < 0.18
