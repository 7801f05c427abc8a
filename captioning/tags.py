"""Scores said in words behind a caption, for training: a prompt can then ask for a look, a speed, a camera's move.

After Open-Sora 1.2 (its third report), which writes "aesthetic score: 5.5, motion score: 10, camera motion: pan left".
Its motion score is another measure than ours. Dropping each tag at times is ours, so that prompts work without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from captioning.camera import camera_moves
from captioning.words import is_finished, words


def _aesthetic(score: float) -> str:
    return f"{score:.1f}"


def _motion(score: float) -> str:
    return f"{round(score, 2):g}"  # frame heights a second


def _camera(labels: list[str]) -> str:
    return " and ".join(camera_moves(labels))


# Name of the tag -> the column that it says, and how; an empty text says nothing.
_TAGS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "aesthetic score": ("aesthetic_score", _aesthetic),
    "motion score": ("motion_score", _motion),
    "camera motion": ("camera_motion", _camera),
}


def with_tags(caption: str, row: Mapping[str, Any], generator: np.random.Generator, *, dropout: float) -> str:
    """A caption with the scores of its clip behind it; unknown ones are left out.

    The result is a function of the arguments alone. The generator is drawn from as often whatever the row holds, so
    what one clip lacks changes nothing for the next.

    Args:
        caption: without words it gets no tags: it stands for no prompt at all.
        row: of the clip table, or the json of a sample.
        dropout: how probable it is that a tag is left out, 0..1, each for itself. 0 for sampling.

    Raises:
        ValueError: ``dropout`` is no probability, or ``camera_motion`` has an unknown label.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a probability, 0 to 1, got {dropout}")
    draws = generator.random(len(_TAGS))  # 0 <= draw < 1
    said = []
    for draw, (name, (column, say)) in zip(draws, _TAGS.items(), strict=True):
        value = row.get(column)
        known = value is not None and not (isinstance(value, (float, np.floating)) and math.isnan(value))
        if known and draw >= dropout and (text := say(value)):
            said.append(f"{name}: {text}")
    if not said or not words(caption):
        return caption
    return f"{caption}{' ' if is_finished(caption) else ', '}{', '.join(said)}"
