"""Words and sentences of a caption, in any script."""

from __future__ import annotations

import re

# Scripts without spaces between words: each of their signs counts as a word.
_SIGN = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_LETTER = rf"(?:(?!{_SIGN})[^\W_])"
_WORD = re.compile(rf"{_SIGN}|{_LETTER}+(?:[.,'’\-]{_LETTER}+)*")  # don't, 1.5, U.S, well-known: one word each
_TOKEN = re.compile(rf"{_SIGN}|{_LETTER}+|[^\w\s]|_")

_CLOSING = "\"'”’»)\\]」』*_`"
_END = re.compile(rf"(?:[.!?…]+[{_CLOSING}]*(?=\s|$)|[。！？｡।؟]+[{_CLOSING}]*)")
_FINISHED = re.compile(rf"[.!?…。！？｡।؟][{_CLOSING}]*$")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[^\W\d_](?:\.[^\W\d_])*"  # A. Lincoln, the U.S., e.g.
    r"|mr|mrs|ms|dr|st|mt|jr|sr|prof|gen|sgt|capt|vs|no|nr|approx|ca|bzw|etc|fig|ave|blvd|dept|inc|ltd|co|corp)\.$",
    re.IGNORECASE,
)
# Words after which something must follow, and signs likewise.
_DANGLING = re.compile(
    r"(?:^|\s)(?:an?|the|and|or|but|nor|of|with|at|to|for|from|into|onto|as|while|which|who|whose|that|their|his|its|is"
    r"|are|was|were|because|if|than)$|[,;:\-–—(&/“‘]$",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words, as written. Abbreviations and numbers are one word each: ``U.S``, ``1.5``."""
    return _WORD.findall(text)


def tokens(text: str) -> list[str]:
    """Words without anything joined, and every other sign, in lower case."""
    return _TOKEN.findall(text.lower())


def sentences(text: str) -> list[str]:
    """The sentences without the space between them; the last one may be unfinished.

    ``Mr.``, ``U.S.`` and numbers end no sentence, and neither does a dot that a small letter follows.
    """
    found, start = [], 0
    for end in _END.finditer(text):
        so_far, after = text[start : end.end()], text[end.end() :].lstrip()
        if after and end[0].startswith(".") and (after[0].islower() or _ABBREVIATION.search(so_far.rstrip(_CLOSING))):
            continue
        if so_far.strip():
            found.append(so_far.strip())
        start = end.end()
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def is_finished(sentence: str) -> bool:
    """Whether a sentence ends as one does."""
    return bool(_FINISHED.search(sentence.rstrip()))


def is_cut_off(text: str) -> bool:
    """Whether a text breaks off: its last sentence has no end though others have, or ends in ``and the``.

    A single phrase without a full stop, such as ``a red ball on a table``, is whole.
    """
    parts = sentences(text)
    if not parts or is_finished(parts[-1]):
        return False
    return len(parts) > 1 or bool(_DANGLING.search(parts[-1]))
