"""Frames put aside until their shot ends: in memory while small, in a temporary file beyond that."""

from __future__ import annotations

import math
import tempfile
from typing import Any, NamedTuple

import numpy as np

from curation.frames import pack

SPOOL_BYTES = 64 << 20  # what one request of one shot may keep in memory


class Entry(NamedTuple):
    frame: int
    t_s: float
    offset: int
    size: int


class Spool:
    """Frames of the current shot on a time grid, put aside until the shot ends."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.shape: tuple[int, ...] = (0, 0)
        self.entries: list[Entry] = []
        self._next_s = 0.0
        self.file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - closed with the pass

    def wants(self, t_s: float) -> bool:
        """Whether this is the first frame at or after the next point of the grid."""
        if t_s < self._next_s - 1e-6:
            return False
        self._next_s = (math.floor(t_s * self.fps + 1e-6) + 1) / self.fps
        return True

    def add(self, index: int, t_s: float, pixels: np.ndarray) -> None:
        """Keep a picture (all of one spool have one shape) or an encoded one (a row of bytes)."""
        self.shape = pixels.shape
        self._append(index, t_s, pixels.tobytes())

    def _append(self, index: int, t_s: float, data: bytes) -> None:
        offset = self.file.seek(0, 2)
        self.file.write(data)
        self.entries.append(Entry(index, t_s, offset, len(data)))

    def read(self, entry: Entry) -> bytes:
        self.file.seek(entry.offset)
        return self.file.read(entry.size)

    def between(self, start: int, end: int) -> list[Entry]:
        return sorted(entry for entry in self.entries if start <= entry.frame < end)

    def packed(self, start: int, end: int) -> dict[str, Any]:
        """The frames with start <= index < end, as ``Frames.unpack`` reads them."""
        entries = self.between(start, end)
        pixels = np.frombuffer(b"".join(self.read(entry) for entry in entries), np.uint8)
        return pack(pixels.reshape((len(entries), *self.shape)), np.array([entry.t_s for entry in entries]))

    def drop_before(self, index: int) -> None:
        """Forget the frames of a finished shot."""
        rest = [(entry.frame, entry.t_s, self.read(entry)) for entry in self.entries if entry.frame >= index]
        self.file.seek(0)
        self.file.truncate()
        self.entries = []
        for item in rest:
            self._append(*item)
