"""The language of a caption, by lingua."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from captioning.words import words

# ISO 639-1. Fewer languages to choose from are told apart better, and each takes memory.
LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko", "nb",
    "nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
_FEWEST_WORDS = 4
_CLEARLY = 1.5  # times as probable as the next language; less says nothing


def known_languages() -> list[str]:
    """The codes that can be told apart at all."""
    from lingua import Language

    return sorted(language.iso_code_639_1.name.lower() for language in Language.all())


def language_of(text: str, languages: Sequence[str] = LANGUAGES) -> str | None:
    """The ISO 639-1 code of a text; None where it is too short, or too much alike in two languages."""
    if len(words(text)) < _FEWEST_WORDS:
        return None
    first, second = _detector(tuple(languages)).compute_language_confidence_values(text)[:2]
    if first.value == 0 or first.value < _CLEARLY * second.value:
        return None
    return str(first.language.iso_code_639_1.name.lower())


@functools.lru_cache(maxsize=1)
def _detector(languages: tuple[str, ...]) -> Any:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in languages]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
