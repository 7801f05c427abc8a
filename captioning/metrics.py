"""How captions compare with others of the same clips: agreement, wealth of words, what they say of a known truth.

Scores are of one pair; ``average`` makes those of many. All are shares, 0..1, but for ``match_score``, a cosine. An
unknown one is None.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from captioning.phrases import is_refusal
from captioning.words import words


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairScores:
    """A caption against another one of the same clip.

    Agreement is unknown where there is nothing to agree with: the other caption has no words. A caption without words
    agrees in nothing.
    """

    caption: str | None
    token_f1: float | None
    chrf: float | None
    rouge_l: float | None
    words: int
    distinct_1: float | None
    distinct_2: float | None
    failed: bool
    attributes: dict[str, bool]  # of those whose truth is known: whether the caption says it
    match_score: float | None = None  # the caption against the pictures, by CLIP, where someone has measured it

    @property
    def attribute_recall(self) -> float | None:
        return fmean(self.attributes.values()) if self.attributes else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageScores:
    """Means over pairs for which a score is known; ``distinct_1`` and ``distinct_2`` are of all captions together."""

    pairs: int
    failures: int
    token_f1: float | None
    chrf: float | None
    rouge_l: float | None
    words: float | None
    distinct_1: float | None
    distinct_2: float | None
    match_score: float | None
    attribute_recall: float | None  # over attributes, each counting once for each clip
    attributes: dict[str, float]


def compare(caption: str | None, other: str | None, truth: Mapping[str, str] | None = None) -> PairScores:
    """Score a caption against another of the same clip.

    Args:
        caption: the one that is judged; None is a failure.
        other: what it should say, such as the teacher's caption.
        truth: attribute -> the word or words for it, such as ``{"colour": "red"}``, where they are known.
    """
    text, against = caption or "", other or ""
    known = bool(words(against))
    return PairScores(
        caption=caption,
        token_f1=token_f1(text, against) if known else None,
        chrf=chrf(text, against) if known else None,
        rouge_l=rouge_l(text, against) if known else None,
        words=len(words(text)),
        distinct_1=distinct([text], 1),
        distinct_2=distinct([text], 2),
        failed=has_failed(caption),
        attributes={name: says(text, word) for name, word in (truth or {}).items()},
    )


def average(scores: Sequence[PairScores]) -> AverageScores:
    """Scores of many pairs."""
    captions = [score.caption or "" for score in scores]
    by_attribute: collections.defaultdict[str, list[bool]] = collections.defaultdict(list)
    for score in scores:
        for name, said in score.attributes.items():
            by_attribute[name].append(said)
    return AverageScores(
        pairs=len(scores),
        failures=sum(score.failed for score in scores),
        token_f1=_mean(score.token_f1 for score in scores),
        chrf=_mean(score.chrf for score in scores),
        rouge_l=_mean(score.rouge_l for score in scores),
        words=_mean(score.words for score in scores),
        distinct_1=distinct(captions, 1),
        distinct_2=distinct(captions, 2),
        match_score=_mean(score.match_score for score in scores),
        attribute_recall=_mean(said for all_said in by_attribute.values() for said in all_said),
        attributes={name: fmean(said) for name, said in sorted(by_attribute.items())},
    )


def token_f1(caption: str, other: str) -> float:
    """Harmonic mean of precision and recall of words, each as often as it stands there, in any order and case.

    After the evaluation of SQuAD (Rajpurkar et al. 2016), which also leaves articles out; we do not.
    """
    mine, theirs = collections.Counter(_said(caption)), collections.Counter(_said(other))
    said = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / said if said else 0.0


def chrf(caption: str, other: str) -> float:
    """Overlap of runs of 1 to 6 characters, recall counting twice (chrF2 of Popović 2015, by sacrebleu), over 100."""
    return float(_chrf().sentence_score(caption, [other]).score) / 100


def rouge_l(caption: str, other: str) -> float:
    """F1 of the longest run of words, gaps allowed, that both have in common (Lin 2004, by rouge-score).

    Words are ours, so that captions in any script have some, and they are not stemmed.
    """
    return float(_rouge().score(other, caption)["rougeL"].fmeasure)


def distinct(captions: Iterable[str], n: int) -> float | None:
    """Share of runs of ``n`` words that are different ones, over all captions (distinct-n of Li et al. 2016)."""
    runs: collections.Counter[tuple[str, ...]] = collections.Counter()
    for caption in captions:
        said = _said(caption)
        runs.update(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
    return len(runs) / runs.total() if runs else None


def says(caption: str, word: str) -> bool:
    """Whether a caption has this word, or these words in a row, in any case. ``red`` is not said by ``bored``."""
    said, wanted = _said(caption), _said(word)
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def has_failed(caption: str | None) -> bool:
    """Whether there is no caption: none, one without words, or a refusal."""
    return not words(caption or "") or is_refusal(caption or "")


def _said(text: str) -> list[str]:
    return [word.lower() for word in words(text)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return _said(text)

    return RougeScorer(["rougeL"], tokenizer=Words())
