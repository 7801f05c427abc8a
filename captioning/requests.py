"""What captioners ask of models, and what comes back, whichever backend answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from curation.errors import CutroomError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One question.

    Attributes:
        prompt: the text of the question.
        images: JPEG, in time order.
        times: presentation seconds of the images.
        video: the images are frames of one video, and the model is to see them as such.
        max_tokens: the answer is cut off there.
    """

    prompt: str
    images: tuple[bytes, ...] = ()
    times: tuple[float, ...] = ()
    video: bool = False
    max_tokens: int = 256

    def digest(self) -> str:
        """A name of everything in the question."""
        whole = hashlib.blake2b(digest_size=16)
        for part in (self.prompt.encode(), repr((self.times, self.video, self.max_tokens)).encode(), *self.images):
            whole.update(len(part).to_bytes(8, "big") + part)
        return whole.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, without what the model thinks aloud before it.

    ``cut_off``: it ended at ``max_tokens``, or its thoughts have no end. Tokens are None where the backend does not
    count them.
    """

    text: str
    cut_off: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def __post_init__(self) -> None:  # here, where every backend's answers and those of the journal come by
        answer, unended = spoken(self.text)
        object.__setattr__(self, "text", answer)
        object.__setattr__(self, "cut_off", self.cut_off or unended)


def spoken(text: str) -> tuple[str, bool]:
    """An answer without ``<think>...</think>``, which some templates open themselves, and whether one has no end."""
    _, closed, rest = text.rpartition("</think>")
    answer, unended, _ = rest.partition("<think>")
    return (answer.strip() if closed or unended else text), bool(unended)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How words are chosen.

    Attributes:
        temperature: 0 takes the likeliest words.
        seed: of what is drawn at a higher temperature.
        deterministic: of models in this process: question by question and with deterministic kernels only.
    """

    temperature: float = 0.0
    seed: int = 0
    deterministic: bool = False


class RefusedError(CutroomError):
    """A question that is not answered, now or later, while others are: it is the clip that fails."""


class Backend(Protocol):
    """Something that answers requests."""

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Exception]]:
        """Yield the place of each request and its answer, or why there is none, as soon as it is there, in any order.

        An exception that is raised instead is of no single request: the model or the server cannot be used at all.
        """
