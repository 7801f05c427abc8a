"""Short prompts made into descriptions like those that the video model was trained on."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Sequence

from captioning.backends import check_backend, open_backend
from captioning.endpoint import Endpoint
from captioning.prompts import load_prompt
from captioning.requests import Reply, Request, Sampling
from captioning.words import words
from curation.errors import CutroomError, UsageError
from curation.table import Store, caption_columns, caption_of

_LONGEST = 2000  # letters of an example: one odd caption must not fill the context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What became of a prompt, and from what."""

    prompt: str
    text: str
    examples: list[str]
    prompt_file: str  # name#digest
    cut_off: bool


class UnansweredError(CutroomError):
    """Some prompts have no answer; ``done`` are the others, which may have been paid for."""

    def __init__(self, message: str, done: Sequence[Enhanced]) -> None:
        super().__init__(message)
        self.done = list(done)


def enhance(
    prompts: Sequence[str],
    run: str | os.PathLike[str],
    model: str,
    *,
    endpoint: Endpoint | None = None,
    gpu: bool = False,
    template: str = "enhance-1",
    num_examples: int = 6,
    max_tokens: int = 320,
    sampling: Sampling | None = None,
) -> list[Enhanced]:
    """Rewrite prompts for sampling, after captions of the training set: half those most like the prompt, half any.

    Args:
        prompts: as a person writes them.
        run: the output directory of the run that the model was trained on.
        model, endpoint: of a language model, as of ``Captioner``.
        template: a prompt of Cutroom or a .txt file, with ``$examples`` and ``$prompt``.
        num_examples: captions that are shown to the model.

    After CogVideoX (Yang et al. 2024), whose prompts are rewritten by a language model before sampling.

    Raises:
        UsageError: the request is wrong.
        UnansweredError: the model did not answer all; it holds what has been answered.
    """
    sampling = sampling or Sampling()
    asked = load_prompt(template, ("examples", "prompt"))
    if "prompt" not in asked.names:
        raise UsageError(f"the template {template} has no $prompt: every prompt would become the same")
    if empty := [prompt for prompt in prompts if not prompt.strip()]:
        raise UsageError(f"the prompt {empty[0]!r} is empty")
    captions = read_captions(run)
    if not captions:
        raise UsageError(f"{run} has no kept clips with captions; run a pipeline that writes captions")
    check_backend(model, endpoint=endpoint)
    examples = [choose(prompt, captions, num_examples, seed=sampling.seed) for prompt in prompts]
    requests = [
        Request(
            prompt=asked.fill({"examples": "\n\n".join(f"- {text}" for text in shown), "prompt": prompt.strip()}),
            max_tokens=max_tokens,
        )
        for prompt, shown in zip(prompts, examples, strict=True)
    ]
    answers = dict(open_backend(model, endpoint=endpoint, gpus=float(gpu), sampling=sampling).ask(requests))
    done, failed = [], []
    for i, prompt in enumerate(prompts):
        reply = answers[i]
        if not isinstance(reply, Reply) or not reply.text.strip():
            why = reply if isinstance(reply, Exception) else "an empty text"
            failed.append(f"{prompt!r}: {why}")
            continue
        done.append(
            Enhanced(
                prompt=prompt,
                text=reply.text.strip(),
                examples=examples[i],
                prompt_file=asked.mark,
                cut_off=reply.cut_off,
            )
        )
    if failed:
        raise UnansweredError(f"the model {model} has not answered {'; '.join(failed)}", done)
    return done


def read_captions(run: str | os.PathLike[str]) -> list[str]:
    """The captions of kept clips, each once, in the order of their clips."""
    found: dict[str, None] = {}
    for _, clips in Store(run).parts("clips"):
        for row in clips.select(["status", *caption_columns(clips.column_names)]).to_pylist():
            if row["status"] == "kept" and (text := (caption_of(row) or "").strip()):
                found[text] = None
    return list(found)


def choose(prompt: str, captions: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """Captions to learn from: half share the most words with the prompt, the others are drawn, for the style.

    The same seed draws the same ones. Longer captions are not preferred: what counts is the share of their words.
    """
    wanted = {word.lower() for word in words(prompt)}
    drawn = list(range(len(captions)))
    random.Random(seed).shuffle(drawn)  # noqa: S311  # also decides between captions that are equally alike

    def likeness(i: int) -> float:
        own = {word.lower() for word in words(captions[i])}
        return len(own & wanted) / max(1, len(own)) ** 0.5

    alike = sorted(drawn, key=likeness, reverse=True)[: count // 2]
    others = [i for i in drawn if i not in set(alike)][: count - len(alike)]
    return [captions[i][:_LONGEST] for i in [*alike, *others]]
