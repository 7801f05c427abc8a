"""Contact sheets on their way from the decoder to the table: in a file, because a film has more than memory holds."""

from __future__ import annotations

import os
from types import TracebackType

import pyarrow as pa

from curation.table import FRAMES

_ROWS = 64  # frames per write


class SheetFile:
    """Contact sheet frames appended to an Arrow file. Use as a context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._waiting: list[tuple[str, float, bytes]] = []
        self._writer = pa.ipc.new_file(self.path, FRAMES)

    def add(self, clip_id: str, t_s: float, jpeg: bytes) -> None:
        self._waiting.append((clip_id, t_s, jpeg))
        if len(self._waiting) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._waiting, strict=True)) or [(), (), ()]
        self._writer.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, FRAMES, strict=True)], FRAMES))
        self._waiting = []

    def __enter__(self) -> SheetFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._flush()
        self._writer.close()


def open_sheets(path: str | os.PathLike[str]) -> pa.Table:
    """The frames of a finished file, mapped and not read."""
    with pa.memory_map(os.fspath(path)) as file:
        return pa.ipc.open_file(file).read_all()


def take_sheets(path: str | os.PathLike[str]) -> pa.Table:
    """The frames of a finished file, mapped; the file itself goes when nobody uses them any more."""
    table = open_sheets(path)
    os.unlink(path)
    return table
