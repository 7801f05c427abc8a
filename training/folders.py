"""What a training leaves in its folder: weights, how far they are, and the order of its stages."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from curation.errors import UsageError
from curation.files import aside
from training.weights import read_json

WEIGHTS = "weights"
PROGRESS = "weights.step"  # of the training whose weights lie there, whole
_STAGES = "stages.json"


def check_folder(folder: Path) -> None:
    """Raises UsageError where a training cannot write its folder; nothing is made."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise UsageError(f"--output {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise UsageError(f"--output {folder}: {there} cannot be written to; name another folder")


def note_stages(folder: Path, names: Sequence[str]) -> None:
    """Write which stages a training has, in their order; the only one of a training without stages is named ''."""
    folder.mkdir(parents=True, exist_ok=True)
    with aside(folder / _STAGES) as file:
        file.write_text(json.dumps({"stages": list(names)}), encoding="utf-8")


def last_weights(folder: Path) -> Path | None:
    """The weights of the last stage that has some; None where no training left any.

    The order is the noted one: a copy of the folder need not keep the times of its files.
    """
    file = folder / _STAGES
    names = read_json(file).get("stages") if file.is_file() else [""]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{file} is damaged; give the folder of the weights themselves")
    places = [folder / name / WEIGHTS for name in reversed(names)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None and (stages := sorted(folder.glob(f"*/{WEIGHTS}"))):
        raise UsageError(f"{folder} does not say which of its stages is the last: give one, such as {stages[-1]}")
    return found


def progress_of(folder: Path) -> str | None:
    """How far the training is whose weights lie in ``folder``; None where that is not known."""
    file = folder.parent / PROGRESS
    return file.read_text(encoding="utf-8") if file.is_file() else None


def role_file(folder: Path, name: str) -> Path:
    """Where a training leaves the weights of a role that helps the model to learn, such as its discriminator."""
    return folder / f"{name}.safetensors"
