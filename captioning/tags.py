"""Scores said in words behind a caption, for training: a prompt can then ask for a look, a speed, a camera's move.

After Open-Sora 1.2 (its third report), which writes "aesthetic score: 5.5, motion score: 10, camera motion: pan left".
Its motion score is another measure than ours. Dropping each tag at times is ours, so that prompts work without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from captioning.camera import LABELS, camera_moves
from captioning.words import is_finished, words


def _aesthetic(score: Any) -> str:
    return f"{score:.1f}" if _is_score(score) else ""


def _motion(score: Any) -> str:
    return f"{round(float(score), 2):g}" if _is_score(score) else ""  # frame heights a second


def _camera(labels: Any) -> str:
    return " and ".join(camera_moves(labels)) if isinstance(labels, Sequence) else ""


def _is_score(value: Any) -> bool:
    """Neither of our scores is below 0 or above 100; a row by others may hold anything."""
    return isinstance(value, (int, float, np.floating)) and not isinstance(value, bool) and bool(0 <= value <= 100)


# Name of the tag -> the column that it says, and how; an empty text says nothing.
_TAGS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "aesthetic score": ("aesthetic_score", _aesthetic),
    "motion score": ("motion_score", _motion),
    "camera motion": ("camera_motion", _camera),
}

# Every word and digit that tags are made of.
EVERY_TAG = " ".join([*_TAGS, "static", *camera_moves(LABELS), "and", *"0123456789.,:"])


def with_tags(caption: str, row: Mapping[str, Any], generator: np.random.Generator, *, dropout: float) -> str:
    """A caption with the scores of its clip behind it; unknown ones are left out.

    The result is a function of the arguments alone. The generator is drawn from as often whatever the row holds, so
    what one clip lacks changes nothing for the next.

    Args:
        caption: without words it gets no tags: it stands for no prompt at all.
        row: of the clip table, or the json of a sample.
        dropout: how probable it is that a tag is left out, 0..1, each for itself. 0 for sampling.

    Raises:
        ValueError: ``dropout`` is no probability.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a probability, 0 to 1, got {dropout}")
    draws = generator.random(len(_TAGS))  # 0 <= draw < 1
    tags = _tags(row)
    said = [tags[name] for draw, name in zip(draws, _TAGS, strict=True) if draw >= dropout and name in tags]
    if not said or not words(caption):
        return caption
    caption = caption.rstrip()
    return f"{caption}{' ' if is_finished(caption) else ', '}{', '.join(said)}"


def scores_to_say(row: Mapping[str, Any]) -> dict[str, Any]:
    """What tags say of a row, by column; a row by others may hold anything there."""
    said = _tags(row)
    return {column: row[column] for name, (column, _) in _TAGS.items() if name in said}


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    """Each tag that the row has a value for."""
    found = {}
    for name, (column, say) in _TAGS.items():
        value = row.get(column)
        try:
            text = say(value)
        except ValueError:  # a label that is not ours
            continue
        if text:
            found[name] = f"{name}: {text}"
    return found
