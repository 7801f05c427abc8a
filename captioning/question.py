"""What a captioner that sees the clip is asked, in training and ever after."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captioning.requests import Request
from curation.errors import UsageError

RECORD = "distill.json"  # in the folder of a model that was taught by ``cutroom caption distill``
_QUALITY = 95  # of JPEG: what was compressed once already is not to lose much more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about every clip, in training and ever after.

    Attributes:
        prompt: the text.
        frames: taken from a contact sheet, spread evenly over it; all, where it has fewer.
        long_side_px: larger pictures are scaled down to it; None takes them as they are.
        max_tokens: of the answer.

    With the defaults a Qwen2.5-VL reads and writes less than a fifth of the tokens of version 1's calls, by the figures
    of ``benchmarks/caption_cost.py``, for pictures from 16:9 to square with a long side of 640 px or more; up to 29%
    for smaller ones, which its processor enlarges. What is paid for it: motion between frames more than a second apart
    in clips of ten seconds, and small print. 16 frames of 640 px take about half of version 1's tokens.
    """

    prompt: str = "Describe this video."
    frames: int = 8
    long_side_px: int | None = 420
    max_tokens: int = 320  # as version 1 has them, so that no caption is learnt longer than it may be written

    def seen(self, sheet: Sequence[tuple[float, bytes]]) -> Sequence[tuple[float, bytes]]:
        """The frames of a contact sheet that the question takes, as they are there."""
        if len(sheet) <= self.frames:
            return sheet
        last = max(1, self.frames - 1)
        return [sheet[round(i * (len(sheet) - 1) / last)] for i in range(self.frames)]

    def of(self, sheet: Sequence[tuple[float, bytes]]) -> Request:
        """Ask about a clip. ``sheet``: the time and JPEG of each frame of its contact sheet, in order."""
        sheet = self.seen(sheet)
        return Request(
            prompt=self.prompt,
            images=tuple(jpeg if self.long_side_px is None else shrunk(jpeg, self.long_side_px) for _, jpeg in sheet),
            times=tuple(t_s for t_s, _ in sheet),
            video=True,
            max_tokens=self.max_tokens,
        )


def shrunk(jpeg: bytes, long_side_px: int) -> bytes:
    """A JPEG scaled down so that its long side has so many pixels.

    A smaller one stays as it is, and so does one that cannot be decoded: who is asked about it will say so, and only
    that question fails.
    """
    import cv2

    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        return jpeg
    height, width = picture.shape[:2]
    if (scale := long_side_px / max(height, width)) >= 1:
        return jpeg
    size = max(1, round(scale * width)), max(1, round(scale * height))
    smaller = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1])


def is_distilled(model: Path) -> bool:
    """Whether a folder holds a model that was taught here."""
    return (model / RECORD).is_file()


def read_question(model: Path) -> Question:
    """The question that a model was taught to answer.

    Raises:
        UsageError: its record cannot be read.
    """
    try:
        question = json.loads((model / RECORD).read_text(encoding="utf-8"))["question"]
        return Question(**{"long_side_px": None, **question})  # models taught before that was a choice saw all pixels
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{model / RECORD} is not the record of a distillation: {error}") from error
