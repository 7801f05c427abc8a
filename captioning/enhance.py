"""Short prompts made into descriptions like those that the video model was trained on."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Sequence

from captioning.backends import check_backend, open_backend
from captioning.clean import clean
from captioning.endpoint import Endpoint
from captioning.examples import read_examples
from captioning.phrases import is_refusal
from captioning.prompts import load_prompt
from captioning.requests import Reply, Request, Sampling
from captioning.words import words
from curation.errors import CutroomError, UsageError

_LONGEST = 2000  # letters of an example: one odd caption must not fill the context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What became of a prompt, and from what. ``text`` is clean, as ``clean`` has it."""

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
    captions = list(dict.fromkeys(example.caption for example in read_examples(run) if not example.flaw))
    if not captions:
        raise UsageError(f"all captions of {run} break off or are refusals; caption it with another model")
    check_backend(model, endpoint=endpoint)
    examples = choose(prompts, captions, num_examples, seed=sampling.seed)
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
        text = clean(reply.text, stopped=reply.cut_off)[0] if isinstance(reply, Reply) else None
        if not isinstance(reply, Reply) or text is None or is_refusal(text):
            failed.append(f"{prompt!r}: {_why(reply, text)}")
            continue
        done.append(
            Enhanced(
                prompt=prompt,
                text=text,
                examples=examples[i],
                prompt_file=asked.mark,
                cut_off=reply.cut_off,
            )
        )
    if failed:
        raise UnansweredError(f"the model {model} has not answered {'; '.join(failed)}", done)
    return done


def _why(reply: Reply | Exception, text: str | None) -> str:
    """Why an answer, of which ``text`` is left, is none."""
    if isinstance(reply, Exception):
        return str(reply)
    if text is not None:
        return f"it refuses: {text}"
    return "it was cut off within its first sentence; raise max_tokens" if reply.cut_off else "an empty text"


def choose(prompts: Sequence[str], captions: Sequence[str], count: int, *, seed: int = 0) -> list[list[str]]:
    """Captions to learn from, for each prompt: half share the most words with it, the others are drawn, for the style.

    The same seed draws the same ones. Longer captions are not preferred: what counts is the share of their words.
    """
    said = [_said(caption) for caption in captions]
    drawn = list(range(len(captions)))
    random.Random(seed).shuffle(drawn)  # noqa: S311  # also decides between captions that are equally alike
    chosen = []
    for wanted in map(_said, prompts):
        likeness = [len(own & wanted) / max(1, len(own)) ** 0.5 for own in said]
        alike = sorted(drawn, key=likeness.__getitem__, reverse=True)[: count // 2]
        shown = set(alike)
        others = [i for i in drawn if i not in shown][: count - len(alike)]
        chosen.append([captions[i][:_LONGEST] for i in [*alike, *others]])
    return chosen


def _said(text: str) -> set[str]:
    return {word.lower() for word in words(text)}
