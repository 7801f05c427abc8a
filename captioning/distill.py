"""Version 2: one video-language model, finetuned on the captions of a run, that does in one call what version 1 does
in many.

While it trains, ``OUTPUT/.training`` holds checkpoints; a killed training continues from the last. In the end
``OUTPUT`` is a model that plain transformers opens, with ``distill.json`` about how it came to be, ``log.jsonl``, and
for LoRA the ``adapter`` by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captioning.captioner import LOCAL_FILES
from captioning.chat import check_whole, kind_of, load_processor, takes_images
from captioning.examples import Encoder, Example, Sheets, digest, read_examples, split, without_long
from captioning.question import RECORD, Question
from captioning.tuning import Settings, Tuned, prepare, rate_at, steps_of
from curation.devices import find_device
from curation.errors import CutroomError, UsageError
from curation.files import LEFTOVERS, aside
from curation.model_files import check_safetensors, identity
from curation.output import locked

LOG = "log.jsonl"
_TRAINING = ".training"
_PACKAGES = {"torch": "torch", "transformers": "transformers", "peft": "peft", "PIL": "pillow"}
Say = Callable[[str], None]


class DivergedError(CutroomError, RuntimeError):
    """Weights have become no numbers: nothing that is worth keeping will come of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled:
    """A finished distillation, as ``distill.json`` has it.

    Attributes:
        run, base: as they were given; ``base_identity`` says what the base was.
        question: what is asked of each clip; ``prompt_digest`` names its prompt.
        caption_versions, caption_models: whose captions were learnt.
        data: a digest of the clips and captions.
        num_without_sheet, num_torn: clips that were left out, because they have no contact sheet, or a picture of it
            cannot be decoded. num_flawed: others, because their caption breaks off, is a refusal, or is longer than
            the model may write.
        held_out: clip_ids that were not learnt from.
        steps, seconds: of training; the model is that after ``best_step``.
        stopped: why training ended: ``epochs``, ``minutes`` or ``no progress``.
        losses: at each evaluation the step, the mean loss per token since the last one, and on clips held out.
    """

    run: str
    base: str
    base_identity: str
    question: Question
    prompt_digest: str
    settings: Settings
    caption_versions: list[str]
    caption_models: list[str]
    data: str
    num_clips: int
    num_without_sheet: int
    held_out: list[str]
    num_torn: int = 0  # records of before these were counted have none
    num_flawed: int = 0
    steps: int = 0
    best_step: int = 0
    seconds: float = 0.0
    stopped: str = ""
    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def request(self) -> dict[str, Any]:
        """What decides the result, for telling whether a folder holds this training or another."""
        whole = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: whole[name] for name in ("base_identity", "question", "settings", "data")}


def distill(
    run: str | os.PathLike[str],
    base: str,
    output: str | os.PathLike[str],
    *,
    question: Question | None = None,
    settings: Settings | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Distilled:
    """Finetune a model on the captions of a run. Call it again after a crash to continue.

    Args:
        run: the output directory of a run with captions.
        base: a folder or the id of a repository: an image-text-to-text model of transformers.
        output: a new or empty folder, or one where this very training was begun.
        device: such as ``cuda``; by default a GPU if there is one.
        say: told how it goes.

    Raises:
        UsageError: the request cannot be met. The message says why.
        DivergedError: the learning rate is too high for this model.
    """
    question, settings, output = question or Question(), settings or Settings(), Path(output)
    _check_request(base, settings, device)
    import torch

    captioned = without_long(read_examples(run), load_processor(base), question.max_tokens)
    examples, flawed = ([e for e in captioned if bool(e.flaw) == wrong] for wrong in (False, True))
    if not examples:
        raise UsageError(f"{run} has no caption to learn from: the first {captioned[0].flaw}")
    learnt, held_out = split(examples, settings.held_out)
    found = Distilled(
        run=str(run),
        base=base,
        base_identity=identity(base, *LOCAL_FILES),
        question=question,
        prompt_digest=_name_of(question.prompt),
        settings=settings,
        caption_versions=sorted({example.caption_version or "unknown" for example in examples}),
        caption_models=sorted({example.caption_model or "unknown" for example in examples}),
        data=digest(examples),
        num_clips=len(captioned),
        num_without_sheet=0,
        num_flawed=len(flawed),
        held_out=[example.clip_id for example in held_out],
    )
    _check_output(output, found)
    with locked(output):
        if (output / RECORD).exists():
            say(f"{output} is finished already")
            if (output / _TRAINING).exists():  # it was killed between its last two steps
                shutil.rmtree(output / _TRAINING)
            return _read_record(output)
        folder = output / _TRAINING
        folder.mkdir(exist_ok=True)
        _write_json(folder / "request.json", found.request())
        if flawed:
            first = flawed[0]
            say(
                f"{len(flawed)} clips are left out for their captions; the first is {first.clip_id}, which {first.flaw}"
            )
        sheets = Sheets(run, [example.clip_id for example in examples], folder / "sheets")
        try:
            found, learnt, held_out = _shown(found, learnt, held_out, sheets, say)
            found = _train(found, learnt, held_out, sheets, output, device=device, say=say)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"the GPU's memory does not suffice for --batch {settings.batch} and --method {settings.method}: lower "
                "--batch and raise --accumulate, add --save-memory, or take lora, and name a new --output"
            ) from error
        finally:
            sheets.close()
        for leftover in output.glob(LEFTOVERS):
            leftover.unlink()
        shutil.rmtree(folder)
    return found


def _shown(
    found: Distilled, learnt: Sequence[Example], held_out: Sequence[Example], sheets: Sheets, say: Say
) -> tuple[Distilled, list[Example], list[Example]]:
    """Leave out the clips whose contact sheets are missing or torn; ``found`` says how many there are of each."""
    examples = [*learnt, *held_out]
    there = {e.clip_id for e in examples if e.clip_id in sheets}
    # One torn picture would end the training at the step that comes to it, and every training after it.
    whole = {clip_id for clip_id in there if sheets.is_whole(clip_id, found.question)}
    if torn := there - whole:
        say(f"{len(torn)} clips are left out, a picture of theirs cannot be decoded; the first is {min(torn)}")
    learnt, held_out = ([e for e in part if e.clip_id in whole] for part in (learnt, held_out))
    if not learnt or not held_out:
        raise UsageError(f"{found.run} has contact sheets of too few of its captioned clips; run the pipeline again")
    found = dataclasses.replace(found, num_without_sheet=len(examples) - len(there), num_torn=len(torn))
    return found, learnt, held_out


def _check_request(base: str, settings: Settings, device: str | None) -> None:
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"distillation needs {package}: pip install 'cutroom[caption]'")
    settings.check()
    find_device(device)
    if kind_of(base) != "image-text-to-text":
        raise UsageError(f"--base {base} reads only text; a model is needed that sees, such as Qwen2.5-VL")
    check_safetensors(base)
    check_whole(base)


def _check_output(output: Path, found: Distilled) -> None:
    """Make sure that a folder is new, or holds this very training."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; name a folder")
    begun = output / _TRAINING / "request.json"
    # What a training leaves that is killed before it says what it is.
    nobodys = {output / ".lock", *begun.parent.glob(LEFTOVERS)}
    if begun.parent.is_dir() and nobodys.issuperset(begun.parent.iterdir()):
        nobodys.add(begun.parent)
    if not output.is_dir() or nobodys.issuperset(output.iterdir()):
        return
    try:
        if (output / RECORD).exists():
            before = _read_record(output).request()
        elif begun.exists():
            before = json.loads(begun.read_text(encoding="utf-8"))
        else:
            raise UsageError(f"--output {output} holds other files; name a new or empty folder")
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--output {output} cannot be continued ({error}); name a new folder") from error
    now = found.request()
    if changed := [name for name in now if before.get(name) != now[name]]:
        named = {"data": "the run's captions", "base_identity": "the base", "question": "the prompt"}
        raise UsageError(
            f"--output {output} holds a distillation with other values of "
            f"{', '.join(named.get(name, name) for name in changed)}; name a new folder"
        )


def _train(
    found: Distilled,
    learnt: Sequence[Example],
    held_out: Sequence[Example],
    sheets: Sheets,
    output: Path,
    *,
    device: str | None,
    say: Say,
) -> Distilled:
    """Train to the end, from the last checkpoint if there is one, and save."""
    settings, folder = found.settings, output / _TRAINING
    tuned = prepare(found.base, settings, device=device)
    if not takes_images(tuned.processor):
        raise UsageError(f"--base {found.base} has no processor for pictures")
    encoder = Encoder(tuned.processor, sheets, found.question, cache_mb=settings.cache_mb)
    judged = list(held_out[: settings.judged])
    state = tuned.restore(folder)
    log = _Log(output / LOG, state.step)
    if state.step:
        say(f"continuing after step {state.step}")
    else:
        say(f"{len(learnt)} clips to learn from, {len(held_out)} of other videos held out; {tuned.describe()}")
    total = steps_of(settings, len(learnt))
    evaluate_every = settings.evaluate_every or (100 if total is None else min(100, max(1, total // 10)))
    began = time.monotonic() - state.seconds
    losses: list[float] = []
    for chosen in itertools.islice(_order(learnt, settings), state.step, None):
        state.seconds = time.monotonic() - began
        share = state.step / total if total else state.seconds / (60 * (settings.minutes or 1))
        if state.stopped or share >= 1:
            break
        losses.append(tuned.learn(encoder, chosen, rate=rate_at(settings, state.step, share, total)))
        _check_finite(losses[-1], state.step, settings)
        state.step += 1
        if state.step % evaluate_every == 0 or state.step == total:
            state.losses.append(_judgement(tuned, encoder, judged, losses, state.step, time.monotonic() - began))
            losses = []
            samples = _samples(tuned, encoder, judged[: settings.samples])
            log.write({**state.losses[-1], "samples": samples})
            _say_evaluation(state.losses[-1], samples, say)
            state.stopped = "no progress" if tuned.is_stuck(state) else ""
            state.seconds = time.monotonic() - began
            tuned.checkpoint(folder, state)
    stopped = state.stopped or ("epochs" if total else "minutes")
    if losses:  # the budget ended between two evaluations
        state.losses.append(_judgement(tuned, encoder, judged, losses, state.step, state.seconds))
        log.write(state.losses[-1])
        tuned.checkpoint(folder, state)
    best = tuned.take_best(folder, state)
    found = dataclasses.replace(
        found, steps=state.step, best_step=best, seconds=state.seconds, stopped=stopped, losses=state.losses
    )
    _save(tuned, found, output)
    say(f"stopped by {stopped} after {state.step} steps; kept step {best}; written to {output}")
    return found


def _judgement(
    tuned: Tuned, encoder: Encoder, judged: Sequence[Example], losses: Sequence[float], step: int, seconds: float
) -> dict[str, float]:
    """An entry of ``Distilled.losses``."""
    held_out = tuned.judge(encoder, judged)
    _check_finite(held_out, step, tuned.settings)
    mean = sum(losses) / len(losses)
    return {"step": step, "seconds": round(seconds, 1), "loss": mean, "held_out_loss": held_out}


def _check_finite(loss: float, step: int, settings: Settings) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss at step {step} is {loss}: name a --learning-rate below {rate_at(settings, step, 0.0):g} "
            "and a new --output"
        )


def _order(learnt: Sequence[Example], settings: Settings) -> Iterator[list[Example]]:
    """What each step learns from, for ever: every clip once an epoch, in an order that the seed and epoch decide."""
    import numpy as np

    count = settings.batch * settings.accumulate
    waiting: list[Example] = []
    for epoch in itertools.count():
        places = np.random.default_rng((settings.seed, epoch)).permutation(len(learnt))
        waiting += [learnt[place] for place in places]
        while len(waiting) >= count:
            yield waiting[:count]
            waiting = waiting[count:]


def _samples(tuned: Tuned, encoder: Encoder, examples: Sequence[Example]) -> list[dict[str, str]]:
    """Captions of clips that were held out, beside those that the teacher gave."""
    if not examples:
        return []
    replies = tuned.answer([encoder.request(example) for example in examples])
    return [
        {"clip_id": example.clip_id, "teacher": example.caption, "student": reply.text}
        for example, reply in zip(examples, replies, strict=True)
    ]


def _say_evaluation(figures: dict[str, float], samples: list[dict[str, str]], say: Say) -> None:
    say(
        f"step {figures['step']}, {figures['seconds']:.0f} s: loss {figures['loss']:.4f}, "
        f"on clips held out {figures['held_out_loss']:.4f}"
    )
    for sample in samples[:1]:
        say(f"    teacher: {sample['teacher']}\n    student: {sample['student']}")


def _save(tuned: Tuned, found: Distilled, output: Path) -> None:
    """Write the model aside and move it into place; the record comes last and says that all is there."""
    whole = output / _TRAINING / "model"
    shutil.rmtree(whole, ignore_errors=True)
    tuned.save(whole)
    for path in sorted(whole.iterdir()):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    _write_json(output / RECORD, dataclasses.asdict(found))


def _write_json(path: Path, content: Any) -> None:
    with aside(path) as file:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read_record(output: Path) -> Distilled:
    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    record["question"], record["settings"] = Question(**record["question"]), Settings(**record["settings"])
    return Distilled(**record)


def _name_of(prompt: str) -> str:
    return hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()


class _Log:
    """``log.jsonl``. What was written after the checkpoint that training continues from is dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
