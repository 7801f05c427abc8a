"""What version 2 writes against what it was taught, on the same clips, and what each costs."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.backends import check_backend, open_backend
from captioning.captioner import total
from captioning.endpoint import Endpoint
from captioning.examples import Example, Sheets, read_examples
from captioning.metrics import AverageScores, PairScores, average, compare
from captioning.question import RECORD, Question, is_distilled, read_question
from captioning.requests import Backend, Reply
from curation.errors import CutroomError, UsageError, one_line
from curation.files import aside
from curation.output import check_file
from curation.table import CAPTIONS, Store

_USAGES = {f"{name}_usage" for name in CAPTIONS.names}  # what is asked besides captions costs no caption anything
_AT_A_TIME = 64  # clips whose pictures are in memory
Sheet = Sequence[tuple[float, bytes]]  # the time and JPEG of each frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What captions of a clip take, on the average. Tokens are None where nobody counted them."""

    calls: float
    prompt_tokens: float | None
    completion_tokens: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A comparison of two captioners.

    Attributes:
        held_out: true where the model learnt from none of the clips; None where nobody knows.
        matched_by: the CLIP model of ``match_score``; None where there was none.
        taught: the captions of the run by themselves; agreement is unknown.
        model: the captions of the model, against those of the run.
        taught_cost, model_cost: per clip; ``taught_cost`` is None for captions that were not written by models here.
        errors: of clips that the model could not caption.
    """

    num_clips: int
    held_out: Literal[True] | None
    matched_by: str | None
    taught: AverageScores
    model: AverageScores
    taught_cost: Cost | None
    model_cost: Cost
    errors: dict[str, str]


class Matcher(Protocol):
    """Something that scores captions against pictures, such as ``curation.caption_match``."""

    by: str  # the model

    def __call__(
        self, sheets: Sequence[Sheet], *captions: Sequence[str | None]
    ) -> Sequence[Sequence[float | None]]:  # for each of ``captions`` one score for each sheet
        ...


def evaluate(
    run: str | os.PathLike[str],
    model: str,
    *,
    endpoint: Endpoint | None = None,
    question: Question | None = None,
    truth: Mapping[str, Mapping[str, str]] | None = None,
    limit: int | None = None,
    gpu: bool = False,
    match: Matcher | None = None,
    table: str | os.PathLike[str] | None = None,
    say: Callable[[Evaluation], None] = lambda done: None,
) -> Evaluation:
    """Caption clips of a run with a model and compare with the captions that the run has.

    Args:
        run: the output directory of a run with captions.
        model: a folder that ``cutroom caption distill`` wrote, or any image-text-to-text model of transformers. Of the
            former, only clips are taken that it did not learn from, as far as the run has any.
        endpoint: where the model is served, under the name ``model``; None loads it in this process.
        question: what to ask; a distilled model is asked what it was taught.
        truth: clip_id -> attribute -> the word for it, where it is known.
        limit: of clips; they are taken evenly.
        match: measures how well captions fit the pictures; without it ``match_score`` is unknown.
        table: Parquet file for both captions of every clip side by side, with their scores.
        say: told the result before the table is written, so that a full disk does not cost it.

    Raises:
        UsageError: the request is wrong.
        CutroomError: the table cannot be written after all.
    """
    if table is not None:
        check_file(Path(table), "--table")
    check_backend(model, endpoint=endpoint, pictures=True)
    question = question or (read_question(Path(model)) if is_distilled(Path(model)) else Question())
    examples, held_out = _chosen(read_examples(run), Path(model))
    if limit is not None and len(examples) > limit:
        examples = [examples[int((i + 0.5) * len(examples) / limit)] for i in range(limit)]
    with tempfile.TemporaryDirectory(prefix="cutroom-") as folder:
        sheets = Sheets(run, [example.clip_id for example in examples], Path(folder) / "sheets")
        try:
            examples = [example for example in examples if example.clip_id in sheets]
            if not examples:
                raise UsageError(f"{run} has no contact sheets of its captioned clips; run the pipeline again")
            backend = open_backend(model, endpoint=endpoint, gpus=float(gpu))
            chunks = [examples[start : start + _AT_A_TIME] for start in range(0, len(examples), _AT_A_TIME)]
            judged = [one for chunk in chunks for one in _judge(chunk, sheets, backend, question, truth or {}, match)]
        finally:
            sheets.close()
    answered = [one.reply for one in judged if isinstance(one.reply, Reply)]
    done = Evaluation(
        num_clips=len(examples),
        held_out=held_out,
        matched_by=match.by if match else None,
        taught=average([one.taught for one in judged]),
        model=average([one.model for one in judged]),
        taught_cost=_cost_of_run(run, {example.clip_id for example in examples}),
        model_cost=Cost(
            calls=1.0,
            prompt_tokens=_mean([reply.prompt_tokens for reply in answered]),
            completion_tokens=_mean([reply.completion_tokens for reply in answered]),
        ),
        errors={one.example.clip_id: str(one.reply) for one in judged if isinstance(one.reply, Exception)},
    )
    say(done)
    if table is not None:
        try:
            with aside(Path(table)) as file:
                pq.write_table(_side_by_side(judged), file)
        except OSError as error:
            raise CutroomError(f"--table {table} cannot be written: {one_line(error)}") from error
    return done


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A clip, what the model has answered, and both captions scored."""

    example: Example
    reply: Reply | Exception
    taught: PairScores
    model: PairScores


def _judge(
    examples: Sequence[Example],
    sheets: Sheets,
    backend: Backend,
    question: Question,
    truth: Mapping[str, Mapping[str, str]],
    match: Matcher | None,
) -> list[_Judged]:
    """Ask about a few clips, whose pictures are in memory, and score what is said."""
    shown = [sheets[example.clip_id] for example in examples]
    answers = dict(backend.ask([question.of(sheet) for sheet in shown]))
    replies = [answers[i] for i in range(len(examples))]
    said = [reply.text.strip() or None if isinstance(reply, Reply) else None for reply in replies]
    captions: tuple[list[str | None], list[str | None]] = [example.caption for example in examples], said
    fits = match(shown, *captions) if match else [[None] * len(examples)] * 2
    judged = []
    for example, reply, text, *scores in zip(examples, replies, said, *fits, strict=True):
        facts = truth.get(example.clip_id, {})
        taught, model = compare(example.caption, None, facts), compare(text, example.caption, facts)
        taught, model = (dataclasses.replace(s, match_score=m) for s, m in zip((taught, model), scores, strict=True))
        judged.append(_Judged(example, reply, taught, model))
    return judged


def _side_by_side(judged: Sequence[_Judged]) -> pa.Table:
    """Both captions of every clip, and how they agree."""
    names = ("token_f1", "chrf", "rouge_l", "failed")
    return pa.Table.from_pylist(
        [
            {
                "clip_id": one.example.clip_id,
                "taught_caption": one.example.caption,
                "model_caption": one.model.caption,
                "taught_match_score": one.taught.match_score,
                "model_match_score": one.model.match_score,
                **{name: getattr(one.model, name) for name in names},
            }
            for one in judged
        ]
    )


def read_truth_file(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """A JSON object: clip_id -> attribute -> word. Values that are no words are left out.

    Raises:
        UsageError: it is something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            str(clip_id): {name: word for name, word in facts.items() if isinstance(word, str)}
            for clip_id, facts in content.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is no JSON object of clip_id -> attribute -> word: {error}") from error


def _chosen(examples: list[Example], model: Path) -> tuple[list[Example], Literal[True] | None]:
    """The clips that the model did not learn from, if there are any and it is known."""
    if not is_distilled(model):
        return examples, None
    kept_back = set(json.loads((model / RECORD).read_text(encoding="utf-8"))["held_out"])
    held_out = [example for example in examples if example.clip_id in kept_back]
    return (held_out, True) if held_out else (examples, None)


def _cost_of_run(run: str | os.PathLike[str], clip_ids: set[str]) -> Cost | None:
    """What all stages together took for a clip that wrote its captions."""
    spent: list[list[dict[str, Any]]] = []
    for _, clips in Store(run).parts("clips"):
        columns = [name for name in clips.column_names if name in _USAGES]
        rows = (row for row in clips.select(["clip_id", *columns]).to_pylist() if row["clip_id"] in clip_ids)
        found = ([row[name] for name in columns if row[name]] for row in rows)
        spent.extend(usages for usages in found if usages)
    if not spent:
        return None
    return Cost(
        calls=sum(usage["calls"] for usages in spent for usage in usages) / len(spent),
        prompt_tokens=_mean([total(usage["prompt_tokens"] for usage in usages) for usages in spent]),
        completion_tokens=_mean([total(usage["completion_tokens"] for usage in usages) for usages in spent]),
    )


def _mean(counts: Sequence[int | None]) -> float | None:
    whole = total(counts)
    return whole / len(counts) if counts and whole is not None else None
