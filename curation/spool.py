"""Frames put aside until their shot ends: in memory while small, in a temporary file beyond that."""

from __future__ import annotations

import math
import tempfile
from typing import IO, Any, NamedTuple

import numpy as np

from curation.frames import pack

SPOOL_BYTES = 64 << 20  # what one request of one shot may keep in memory


class Entry(NamedTuple):
    """A picture that is kept: its bytes, or where they lie in the file."""

    frame: int
    t_s: float
    size: int
    data: bytes | None
    offset: int


class Spool:
    """Frames of the current shot on a time grid, put aside until the shot ends."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.shape: tuple[int, ...] = (0, 0)
        self.entries: list[Entry] = []
        self._next_s = 0.0
        self._held = 0  # bytes in memory
        self._file: IO[bytes] | None = None

    def wants(self, t_s: float) -> bool:
        """Whether this is the first frame at or after the next point of the grid."""
        if t_s < self._next_s - 1e-6:
            return False
        self._next_s = (math.floor(t_s * self.fps + 1e-6) + 1) / self.fps
        return True

    def add(self, index: int, t_s: float, pixels: np.ndarray) -> None:
        """Keep a picture (all of one spool have one shape) or an encoded one (a row of bytes)."""
        self.shape, data = pixels.shape, pixels.tobytes()
        if self._held + len(data) <= SPOOL_BYTES:
            self._held += len(data)
            self.entries.append(Entry(index, t_s, len(data), data, 0))
            return
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - closed with the pass
        self.entries.append(Entry(index, t_s, len(data), None, self._file.seek(0, 2)))
        self._file.write(data)

    def read(self, entry: Entry) -> bytes:
        if entry.data is not None:
            return entry.data
        assert self._file is not None
        self._file.seek(entry.offset)
        return self._file.read(entry.size)

    def between(self, start: int, end: int) -> list[Entry]:
        return sorted(entry for entry in self.entries if start <= entry.frame < end)

    def packed(self, start: int, end: int, every: int = 1) -> dict[str, Any]:
        """The frames with start <= index < end, the first and one in ``every``, as ``Frames.unpack`` reads them."""
        entries = self.between(start, end)[::every]
        pixels = np.frombuffer(b"".join(map(self.read, entries)), np.uint8)
        return pack(pixels.reshape((len(entries), *self.shape)), np.array([entry.t_s for entry in entries]))

    def drop_before(self, index: int) -> None:
        """Forget the frames of a finished shot."""
        self.entries = [entry for entry in self.entries if entry.frame >= index]
        self._held = sum(entry.size for entry in self.entries if entry.data is not None)
        if self._file is not None and all(entry.data is not None for entry in self.entries):
            self.close()

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
