"""What can be wrong with a caption, measured."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Len

from captioning.language import LANGUAGES, known_languages, language_of
from captioning.phrases import is_refusal, label, opening
from captioning.words import is_cut_off, is_finished, sentences, tokens, words
from curation.errors import UsageError, nearest
from curation.model_files import check_weights, fetch_weights, identity, located
from curation.stage import Needs, Stage
from curation.table import caption_columns, caption_of

_TOKENIZER = "tokenizer.json"
_USAGE = "caption_usage"


@dataclasses.dataclass(kw_only=True)
class CaptionChecks(Stage):
    """Measures of captions. It stands behind the stage that writes them; rules on its columns decide.

    Writes:
        caption_words: number of words; each Chinese or Japanese sign is one. 0 for an empty caption and for none, of
            which all other measures are unknown: a rule with ``min`` rejects both.
        caption_tokens: number of tokens that a text encoder gets, its end mark included, before it cuts off. CogVideoX
            reads 226. Unknown where no ``tokenizer`` is named.
        caption_repetition: share (0..1) of the caption that says again what was said: words that run in a loop, and
            sentences that came before.
        caption_boilerplate: share (0..1) of the words that speak of the video instead of what it shows: "The video
            shows", "In this image,", "Caption:", at the beginning of a sentence.
        caption_refusal: 1 where a sentence begins as a refusal does ("I'm sorry", "As an AI"), otherwise 0.
        caption_cut_off: 1 where the caption breaks off within a sentence, or where the model that wrote it was stopped
            (``caption_usage``, where a stage before writes that); otherwise 0. A single phrase without a full stop is
            whole, and so is a clean caption that ends as a sentence does.
        caption_language: ISO 639-1 code, such as ``en``. Unknown for fewer than four words, and where two languages
            are nearly as probable.

    Args:
        column: null measures what goes into the shards: behind the stage ``clean_captions`` the clean caption.
            ``caption`` measures it as it was written.
        tokenizer: a folder with ``tokenizer.json``, that file, or a repository of the Hugging Face hub that has one.
            ``google-t5/t5-small`` counts as the T5 of CogVideoX does.
        languages: those to choose from. Of the 30 that are the default a worker needs 550 MB and some 4 s to start;
            then 0.2 ms a caption.
    """

    column: Literal["caption"] | None = None
    tokenizer: str | None = None
    languages: Annotated[list[str], Len(2)] = dataclasses.field(default_factory=lambda: list(LANGUAGES))

    name: ClassVar[str] = "caption_checks"
    version: ClassVar[int] = 2
    needs: ClassVar[Needs] = Needs(memory_bytes=600 << 20)
    extra: ClassVar[str] = "caption"
    packages: ClassVar[tuple[str, ...]] = ("lingua", "tokenizers")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            ("caption_words", pa.int32()),
            ("caption_tokens", pa.int32()),
            ("caption_repetition", pa.float32()),
            ("caption_boilerplate", pa.float32()),
            ("caption_refusal", pa.float32()),
            ("caption_cut_off", pa.float32()),
            ("caption_language", pa.string()),
        ]
    )

    def __post_init__(self) -> None:
        self._captions: tuple[str, ...] = ("caption",)
        self._usage: tuple[str, ...] = ()
        if self.tokenizer is not None:
            self.tokenizer = located(self.tokenizer)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self._captions, *self._usage)

    @property
    def vocabulary(self) -> dict[str, list[str]]:  # type: ignore[override]  # the languages are an argument
        return {"caption_language": self.languages}

    def settings(self) -> dict[str, Any]:
        named = None if self.tokenizer is None else identity(self.tokenizer, _TOKENIZER)
        return {**super().settings(), "tokenizer": named, "languages": sorted(self.languages)}

    def check(self) -> None:
        known = known_languages()
        for code in self.languages:
            if code not in known:
                raise UsageError(f"no language {code!r} is known (ISO 639-1).{nearest(code, known)}")
        if self.tokenizer is not None:
            check_weights(self.tokenizer, [_TOKENIZER])

    def check_inputs(self, columns: pa.Schema) -> None:
        self._usage = (_USAGE,) if _USAGE in columns.names else ()  # captions from files have none
        self._captions = caption_columns(columns.names if self.column is None else (self.column,))

    def process(self, clips: pa.Table) -> pa.Table:
        rows = [self._measure(caption_of(row) or "", was_stopped(row)) for row in clips.to_pylist()]
        return pa.Table.from_pylist(rows, schema=self.writes)

    def _measure(self, text: str, stopped: bool) -> dict[str, Any]:
        count = len(words(text))
        if not text.strip():
            return {"caption_words": 0}
        return {
            "caption_words": count,
            "caption_tokens": count_tokens(text, self.tokenizer) if self.tokenizer else None,
            "caption_repetition": repetition(text),
            "caption_boilerplate": boilerplate(text),
            "caption_refusal": float(is_refusal(text)),
            "caption_cut_off": float(stopped or is_cut_off(text)),
            "caption_language": language_of(text, self.languages),
        }


def was_stopped(row: dict[str, Any]) -> bool:
    """Whether the caption of a clip, given as its row, is unfinished because its model was stopped."""
    stopped = bool((row.get(_USAGE) or {}).get("cut_off"))
    cleaned = row.get("caption_changes") is not None  # then what was unfinished may be gone
    return stopped and not (cleaned and is_finished(caption_of(row) or ""))


def count_tokens(text: str, tokenizer: str) -> int:
    """How many tokens a text encoder gets, with those that its tokenizer adds."""
    return len(_loaded(tokenizer).encode(text).ids)


@functools.lru_cache(maxsize=2)
def _loaded(tokenizer: str) -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(fetch_weights(tokenizer, _TOKENIZER)))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def boilerplate(text: str) -> float:
    """Share of the words that labels and openings take, 0..1."""
    count = len(words(text))
    found = label(text)
    said = len(words(found)) + sum(len(words(opening(sentence))) for sentence in sentences(text[len(found) :]))
    return said / count if count else 0.0


def repetition(text: str) -> float:
    """Share of words and signs that say again what was said, 0..1.

    A loop is a run of words that follows itself: four times at least for one word, six words in all for a few; so
    "round and round" and "higher and higher" are none. A sentence of four words or more counts when it was said before.
    """
    said = tokens(text)
    known_as: dict[str, int] = {}
    names = np.array([known_as.setdefault(token, len(known_as)) for token in said])  # a transcript must take no minutes
    again = np.zeros(len(said), bool)
    for period in range(1, len(said) // 2 + 1):
        same, shortest = names[period:] == names[:-period], max(period, min(3 * period, 6))
        if np.count_nonzero(same) < shortest:
            continue
        first, end = np.flatnonzero(np.diff(same, prepend=False, append=False)).reshape(-1, 2).T + period
        for i in np.flatnonzero(end - first >= shortest):
            again[first[i] : end[i]] = True
    place, known = 0, set()
    for sentence in sentences(text):
        here = tokens(sentence)
        content = tuple(token for token in here if token[0].isalnum())
        if len(content) >= 4 and content in known:
            again[place : place + len(here)] = True
        known.add(content)
        place += len(here)
    return float(again.mean()) if said else 0.0
