"""What a captioner that sees the clip is asked, in training and ever after."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from captioning.requests import Request
from curation.errors import UsageError

RECORD = "distill.json"  # in the folder of a model that was taught by ``cutroom caption distill``


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about every clip, in training and ever after.

    Attributes:
        prompt: the text.
        frames: taken from a contact sheet, spread evenly over it; all, where it has fewer.
        max_tokens: of the answer.
    """

    prompt: str = "Describe this video."
    frames: int = 16
    max_tokens: int = 256

    def of(self, sheet: Sequence[tuple[float, bytes]]) -> Request:
        """Ask about a clip. ``sheet``: the time and JPEG of each frame of its contact sheet, in order."""
        if len(sheet) > self.frames:
            last = max(1, self.frames - 1)
            sheet = [sheet[round(i * (len(sheet) - 1) / last)] for i in range(self.frames)]
        return Request(
            prompt=self.prompt,
            images=tuple(jpeg for _, jpeg in sheet),
            times=tuple(t_s for t_s, _ in sheet),
            video=True,
            max_tokens=self.max_tokens,
        )


def is_distilled(model: Path) -> bool:
    """Whether a folder holds a model that was taught here."""
    return (model / RECORD).is_file()


def read_question(model: Path) -> Question:
    """The question that a model was taught to answer.

    Raises:
        UsageError: its record cannot be read.
    """
    try:
        return Question(**json.loads((model / RECORD).read_text(encoding="utf-8"))["question"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{model / RECORD} is not the record of a distillation: {error}") from error
