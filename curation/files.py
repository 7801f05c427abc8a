"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

LEFTOVERS = "*.tmp"  # what killed processes leave behind


@contextlib.contextmanager
def aside(file: Path, *, durable: bool = False) -> Iterator[Path]:
    """A place to write what becomes ``file`` once all is written; nothing stays of it otherwise.

    Args:
        file: any file, in a folder that exists.
        durable: wait until the content is on the disk, so that a power cut leaves no empty file.
    """
    # Numbers of processes are alike in containers.
    other = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}{LEFTOVERS[1:]}")
    try:
        yield other
        if durable:
            with open(other, "rb") as whole:
                os.fsync(whole.fileno())
        other.replace(file)
    finally:
        other.unlink(missing_ok=True)
