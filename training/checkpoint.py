"""Checkpoints: everything that a training needs to go on as if nothing had happened.

Written by PyTorch's distributed checkpointing (DCP) into a folder aside and renamed when whole; spread over ranks as
they hold the weights, and read back by any number of ranks. They are for continuing one's own training: what others
use is what ``Task.save`` writes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from curation.errors import CutroomError, UsageError
from curation.files import flush
from training.distributed import World

_NAME = "step-"
_ABOUT = "about.json"


class CheckpointError(CutroomError, RuntimeError):
    """A checkpoint cannot be written."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: where they lie, which all ranks see.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self.folder, self._keep, self._world = folder, keep, world

    def newest(self) -> Path | None:
        """The last one that was finished."""
        return max(self.folder.glob(f"{_NAME}*[0-9]"), default=None)

    def save(self, step: int, state: dict[str, Any], about: dict[str, Any]) -> None:
        """Write one. Every rank calls it.

        Args:
            state: tensors, as DCP takes them.
            about: plain values of the first rank.
        """
        place = self.folder / f"{_NAME}{step:08d}"
        aside = place.with_suffix(".tmp")
        if self._world.is_first:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._world.wait()
        with _as_it_is():
            try:
                save(state, checkpoint_id=aside)
            except (OSError, RuntimeError, CheckpointException) as error:  # DCP says a full disk in its own ways
                raise CheckpointError(
                    f"{aside} cannot be written ({_first_line(error)}): is the disk full? "
                    "The checkpoint before is whole; the same command goes on from it"
                ) from error
        self._world.wait()
        if self._world.is_first:
            (aside / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            for path in (*aside.iterdir(), aside):
                flush(path)
            if place.exists():
                place.rename(place.with_suffix(".old.tmp"))
            aside.rename(place)
            flush(self.folder)
            finished = sorted(self.folder.glob(f"{_NAME}*[0-9]"))
            for old in (*finished[: -self._keep], *self.folder.glob("*.tmp")):
                shutil.rmtree(old)
        self._world.wait()

    def about(self) -> dict[str, Any] | None:
        """What was noted with the newest one; None where there is none."""
        place = self._world.of_first(self.newest())
        return json.loads((place / _ABOUT).read_text(encoding="utf-8")) if place is not None else None

    def load(self, state: dict[str, Any]) -> None:
        """Read the newest one into the tensors of ``state``.

        Raises:
            UsageError: it is of another model.
        """
        place = self._world.of_first(self.newest())
        try:
            with _as_it_is():
                load(state, checkpoint_id=place)
        except (RuntimeError, ValueError, CheckpointException) as error:
            raise UsageError(
                f"{place} does not fit this model ({_first_line(error)}): choose another folder, or remove it"
            ) from error


def on_first(world: World, work: Callable[[], None]) -> None:
    """Do something on the first rank; the others wait."""
    if world.is_first:
        work()
    world.wait()


@contextlib.contextmanager
def _as_it_is() -> Iterator[None]:
    """DCP warns that there is but one process, even where it is told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
