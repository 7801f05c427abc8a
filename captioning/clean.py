"""Cleaning captions: what models write around a caption is taken away, and what they wrote stays beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Len

from captioning.phrases import label, opening
from captioning.words import is_cut_off, is_finished, sentences, tokens, words
from curation.errors import UsageError
from curation.stage import Stage
from curation.table import CLEANED

NOTHING_LEFT = "nothing_left"
_USAGE = "caption_usage"
_JUDGEMENTS = ("match_score", "caption_similarity")  # of the caption that training will read


@dataclasses.dataclass(kw_only=True)
class CleanCaptions(Stage):
    """Clean captions. It stands behind the stage that writes them, whose ``caption`` stays as it is.

    Writes:
        clean_caption: what goes into the shards instead of ``caption``. Unknown where there is no caption, and where
            nothing is left of it.
        caption_changes: the rules below that changed something, in their order; ``nothing_left`` at the end where all
            was taken away. Empty for a caption that stays as it is.

    Args:
        rules: those to follow. ``markdown``: emphasis, headings, lists, links and code become plain text.
            ``whitespace``: lines become one, invisible signs go. ``label``: "Caption:", "Sure! Here is a description:".
            ``quotes`` around the whole. ``opening``: "The video shows", at the beginning of a sentence. ``repetition``:
            a sentence of four words or more that was said before. ``cut_off``: a last sentence that breaks off, as
            ``caption_cut_off`` of ``caption_checks`` tells it.

    A refusal is no caption that could be cleaned: a rule on ``caption_refusal`` rejects it. Stages that judge captions
    judge the clean ones if they stand behind this one.
    """

    rules: Annotated[
        list[Literal["markdown", "whitespace", "label", "quotes", "opening", "repetition", "cut_off"]], Len(1)
    ] = dataclasses.field(default_factory=lambda: list(RULES))  # type: ignore[arg-type]

    name: ClassVar[str] = "clean_captions"
    version: ClassVar[int] = 3
    writes: ClassVar[pa.Schema] = CLEANED

    def __post_init__(self) -> None:
        self._reads_usage = False

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # captions from files have no usage
        return ("caption", _USAGE) if self._reads_usage else ("caption",)

    @property
    def vocabulary(self) -> dict[str, list[str]]:  # type: ignore[override]  # the rules are an argument
        return {"caption_changes": [*self.rules, NOTHING_LEFT]}

    def settings(self) -> dict[str, Any]:
        return {"rules": sorted(self.rules)}

    def check_inputs(self, columns: pa.Schema) -> None:
        if judged := [name for name in _JUDGEMENTS if name in columns.names]:
            raise UsageError(
                f"a stage before it writes {judged[0]} of captions as they were written; put that one behind"
            )
        self._reads_usage = _USAGE in columns.names

    def process(self, clips: pa.Table) -> pa.Table:
        captions = clips["caption"].to_pylist()
        usage = clips[_USAGE].to_pylist() if self._reads_usage else [None] * len(captions)
        rows = []
        for text, used in zip(captions, usage, strict=True):
            cleaned, changes = clean(text, rules=self.rules, stopped=bool((used or {}).get("cut_off")))
            rows.append({"clean_caption": cleaned, "caption_changes": changes})
        return pa.Table.from_pylist(rows, schema=self.writes)


def clean(
    text: str | None, *, rules: Sequence[str] | None = None, stopped: bool = False
) -> tuple[str | None, list[str]]:
    """A caption without what does not belong to it, and the names of the rules that changed it.

    What is clean stays as it is. The rules are followed until none finds anything; each takes signs away or makes a
    line break a space, so that comes to an end.

    Args:
        rules: names out of ``RULES``; all of them by default.
        stopped: the model that wrote it was stopped, so a last sentence without an end is unfinished.
    """
    if text is None:
        return None, []
    changes: set[str] = set()
    followed = [(name, rule) for name, rule in RULES.items() if rules is None or name in rules]
    before = None
    while text != before:
        before = text
        for name, rule in followed:
            if (shorter := rule(text, stopped)) != text:
                changes.add(name)
                text = shorter
    found = [name for name in RULES if name in changes]
    return (text, found) if words(text) else (None, [*found, NOTHING_LEFT])


_FENCE = re.compile(r"^[ \t]*(?:```[^`\n]*|~~~[^~\n]*|[-*_](?:[ \t]*[-*_]){2,}[ \t]*)$", re.MULTILINE)
_HEADING = re.compile(r"[ \t]*(?:#{1,6}[ \t]+(?P<plain>.*?)[ \t#]*|(?:\*\*|__)(?P<bold>[^*_]+)(?:\*\*|__):?[ \t]*)$")
_ITEM = re.compile(r"(?:[ \t]*(?:[-*•][ \t]+|>))+[ \t]*(?P<text>.*)$")
_NUMBERED = re.compile(r"[ \t]*\d{1,2}[.)][ \t]+(?P<text>.*)$")
_INLINE = (
    (re.compile(r"<br\s*/?>", re.IGNORECASE), " "),
    (re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*\)"), r"\1"),
    (re.compile(r"\*\*|~~|```|(?<!\w)__(?=\S)|(?<=\S)__(?!\w)"), ""),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]*?)(?<=[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w_])_(?=[^\s_])([^_\n]*?)(?<=[^\s_])_(?![\w_])"), r"\1"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
)


def _without_markdown(text: str, stopped: bool) -> str:
    lines = _FENCE.sub("", text).split("\n")
    lines = _without_headings(lines)
    numbered = [line for line in lines if _NUMBERED.match(line)]
    shapes = (_ITEM, _NUMBERED) if len(numbered) > 1 else (_ITEM,)
    items = [next((found["text"] for shape in shapes if (found := shape.match(line))), None) for line in lines]
    said = [i for i, item in enumerate(items) if item and item.strip()]
    for i in said:
        lines[i] = (items[i] or "").strip()
    if len(said) > 1 and not any(is_finished(lines[i]) for i in said):
        # A list of phrases: without their lines only a full stop keeps them apart.
        breaks_off = stopped or is_cut_off(lines[said[-1]])
        for i in said[:-1] if breaks_off else said:
            lines[i] = lines[i].rstrip(",;") + "."
    text = "\n".join(lines)
    for pattern, plain in _INLINE:
        text = pattern.sub(plain, text)
    return text


def _without_headings(lines: list[str]) -> list[str]:
    """Headings go where something stands below them; a heading that is all there is, or a sentence, is the caption."""
    kept = []
    for i, line in enumerate(lines):
        if not (found := _HEADING.match(line)):
            kept.append(line)
            continue
        title = (found["plain"] or found["bold"] or "").strip()
        if is_finished(title) or not any(words(below) for below in lines[i + 1 :]):
            kept.append(title)
    return kept


# Signs without a shape, but not those that join letters: Persian and emoji need them.
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")


def _without_whitespace(text: str, stopped: bool) -> str:
    return " ".join(_INVISIBLE.sub("", text).split())


def _without_label(text: str, stopped: bool) -> str:
    return _continued(text, len(label(text)))


_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")


def _without_quotes(text: str, stopped: bool) -> str:
    first, last = text[:1], text[-1:]
    if first not in _QUOTES and last != '"':
        return text
    inside = _APOSTROPHE.sub("", text[1:-1])
    if len(text) > 1 and _QUOTES.get(first) == last and not {first, last} & set(inside):
        return text[1:-1].strip()
    if text.count('"') == 1 and first == '"':
        return text[1:].strip()  # the end was cut off
    if text.count('"') == 1 and last == '"' and is_finished(text[:-1]):
        return text[:-1].strip()
    return text


def _without_openings(text: str, stopped: bool) -> str:
    return "".join(_continued(sentence, len(opening(sentence))) + space for sentence, space in _pieces(text))


def _without_repetition(text: str, stopped: bool) -> str:
    known: set[tuple[str, ...]] = set()
    kept = []
    for sentence, space in _pieces(text):
        content = tuple(token for token in tokens(sentence) if token[0].isalnum())
        if len(content) < 4 or content not in known:
            kept.append(sentence + space)
        known.add(content)
    # What stands before a sentence that goes is not the caption's end unless it was the last.
    return "".join(kept) if len(kept) == len(_pieces(text)) else "".join(kept).rstrip()


def _without_unfinished(text: str, stopped: bool) -> str:
    if not (is_cut_off(text) or (stopped and not is_finished(text))):
        return text
    return "".join(sentence + space for sentence, space in _pieces(text)[:-1]).rstrip()


# Name -> the text without what the rule is about. The argument beside the text: whether its model was stopped.
RULES: dict[str, Callable[[str, bool], str]] = {
    "markdown": _without_markdown,
    "whitespace": _without_whitespace,
    "label": _without_label,
    "quotes": _without_quotes,
    "opening": _without_openings,
    "repetition": _without_repetition,
    "cut_off": _without_unfinished,
}


def _continued(text: str, start: int) -> str:
    """The text from ``start`` on, beginning as the whole did: with a capital or not."""
    rest = text[start:]
    if not start or not text[0].isupper() or len(rest[:1].upper()) != 1:
        return rest
    return rest[:1].upper() + rest[1:]


def _pieces(text: str) -> list[tuple[str, str]]:
    """The sentences, each with the space behind it; nothing is lost but space at the beginning."""
    parts = sentences(text)
    starts, place = [], 0
    for part in parts:
        starts.append(text.index(part, place))
        place = starts[-1] + len(part)
    ends = [*starts, len(text)][1:]
    return [(part, text[i + len(part) : end]) for part, i, end in zip(parts, starts, ends, strict=True)]
