"""What captions cost: ``python -m benchmarks.caption_cost``. Tokens of version 1's calls and of version 2's one.

The backbone is Qwen2.5-VL for all of them, its language model for the summary. Pictures are counted by its own
processors, built with the defaults of their classes, on contact sheets as ``decode`` makes them; the questions are
those that the stages ask. Words are counted as 4/3 tokens, and captions are as long as the prompts ask for, so that the
figures need no weights.

At the defaults of the stages, on contact sheets of 640 px at two frames a second, prompt + answer::

                           v1 (6 calls)   v2 (1 call)
                                          8 x 420 px (default)   16 x 420 px   8 x 640 px   16 x 640 px
    16:9        2 s        2806 + 513      304 + 153   13.8%      13.8%         23.1%        23.1%
                4 s        3404 + 513      592 + 153   19.0%      19.0%         34.8%        34.8%
               10 s        4600 + 513      592 + 153   14.6%      25.8%         26.7%        50.1%
    4:3         4 s        4140 + 513      676 + 153   17.8%      17.8%         37.2%        37.2%
               10 s        5704 + 513      676 + 153   13.3%      24.0%         27.9%        53.0%
    1:1         4 s        5244 + 513      916 + 153   18.6%      18.6%         39.7%        39.7%
               10 s        7360 + 513      916 + 153   13.6%      25.0%         29.0%        55.9%
    480 x 360   4 s        2780 + 513      676 + 153   25.2%      25.2%         32.0%        32.0%

At four seconds the default sees every frame that version 1's video model sees; it gains least there. Of the answers
alone version 2 writes 30%: the long caption, which version 1 writes as well. Below some 100,000 pixels a frame the
processor enlarges what it is given, so that pictures smaller than 420 px save little.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from captioning.question import Question
from captioning.requests import Request
from captioning.stages import Caption, FrameCaptions, ShortCaption
from captioning.words import words
from curation.decode import Decode
from curation.torchvision import mend

# Words of an answer: two or three sentences, one or two, 80 to 150 words.
_FRAME, _SHORT, _LONG = 60, 30, 115
_TEMPLATE = 12  # tokens around a question
_MODEL = "curation.dotted:load_object"  # stages name a model; nobody asks it here


@dataclasses.dataclass
class Cost:
    """Calls and tokens."""

    calls: int = 0
    prompt: int = 0
    answer: int = 0

    def add(self, prompt: int, answer: int) -> None:
        self.calls, self.prompt, self.answer = self.calls + 1, self.prompt + prompt, self.answer + answer

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer


class Counter:
    """Counts what Qwen2.5-VL reads."""

    def __init__(self) -> None:
        mend()
        from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

        self._images, self._videos = Qwen2VLImageProcessor(), Qwen2VLVideoProcessor(cap_pixels_per_frame=False)

    def prompt(self, request: Request) -> int:
        """Tokens of a question with its pictures."""
        return _TEMPLATE + text(len(words(request.prompt))) + self._seen(request)

    def _seen(self, request: Request) -> int:
        from PIL import Image

        if not request.images:
            return 0
        pictures = [np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in request.images]
        if request.video:
            grids = self._videos(videos=[np.stack(pictures)], return_tensors="pt")["video_grid_thw"]
        else:
            grids = self._images(images=pictures, return_tensors="pt")["image_grid_thw"]
        return int(grids.prod(dim=1).sum()) // self._images.merge_size**2


def text(count: int) -> int:
    """Tokens of so many words of English."""
    return round(4 / 3 * count)


def sheet(seconds: float, width: int, height: int) -> list[dict[str, Any]]:
    """A contact sheet at the defaults of ``decode``; what its pictures show does not matter."""
    settings = Decode()
    scale = min(1.0, settings.sheet_long_side_px / max(width, height))
    grey = np.full((round(scale * height), round(scale * width), 3), 128, np.uint8)
    jpeg = bytes(cv2.imencode(".jpg", grey)[1])
    times = np.arange(0, seconds, 1 / settings.sheet_fps)
    return [{"t_s": float(t_s), "jpeg": jpeg} for t_s in times]


def first(counter: Counter, frames: Sequence[dict[str, Any]]) -> Cost:
    """Version 1 with its defaults."""
    cost, clip = Cost(), {"frames": frames}
    each = FrameCaptions(model=_MODEL).requests(clip)
    for request in each:
        cost.add(counter.prompt(request), text(_FRAME))
    for request in ShortCaption(model=_MODEL).requests(clip):
        cost.add(counter.prompt(request), text(_SHORT))
    notes = {
        "frame_captions": [{"t_s": request.times[0], "text": "word " * _FRAME} for request in each],
        "short_caption": "word " * _SHORT,
    }
    for request in Caption(model=_MODEL, version="v1").requests(notes):
        cost.add(counter.prompt(request), text(_LONG))
    return cost


def second(counter: Counter, frames: Sequence[dict[str, Any]], question: Question) -> Cost:
    """Version 2 as it is asked."""
    cost = Cost()
    request = question.of([(cell["t_s"], cell["jpeg"]) for cell in frames])
    cost.add(counter.prompt(request), text(_LONG))
    return cost


def main() -> None:
    counter = Counter()
    choices = [
        Question(),
        *(Question(frames=f, long_side_px=s) for f, s in ((16, 420), (8, 640), (16, 640))),
    ]
    for width, height in ((1920, 1080), (1440, 1080), (1080, 1080), (480, 360)):
        for seconds in (2, 4, 5, 10):
            frames = sheet(seconds, width, height)
            one = first(counter, frames)
            print(
                f"{width} x {height}, {seconds} s: v1 {one.calls} calls, {one.prompt} + {one.answer} tokens; v2 1 call"
            )
            for asked in choices:
                two = second(counter, frames, asked)
                what = f"{asked.frames} frames of {asked.long_side_px} px: {two.prompt} + {two.answer}"
                print(f"    {what}, {two.tokens / one.tokens:.1%} of v1's tokens")


if __name__ == "__main__":
    main()
