"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

LEFTOVERS = ".*.tmp"  # what killed processes leave behind


@contextlib.contextmanager
def aside(file: Path) -> Iterator[Path]:
    """A place to write what becomes ``file`` once all is written; nothing stays of it otherwise."""
    other = file.with_name(f".{uuid.uuid4().hex}.tmp")  # numbers of processes are alike in containers
    try:
        yield other
        other.replace(file)
    finally:
        other.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk, so that a power cut leaves no empty file."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
