"""A perceptual hash of a whole clip: what it shows, coarsely, four times a second.

Suffixes in this file: T steps in time, K coefficients. A picture is its lowest K cosine coefficients without the mean,
as in pHash (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010), but kept as numbers:
what tells a copy from the next seconds of the same shot is how they change, and that is often less than a bit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter
from filters.quality import bars

STEP_S = 0.25
K = 24
HEADER_BYTES, STEP_BYTES = 4 + 2 * K, K // 2
_SIDE_PX = 32
FEWEST = 4  # steps: there is no change to go by in less than a second
_FLAT = 1.5  # grey levels: a clip whose pictures deviate less from plain grey, coarsely, shows nothing
_UNIT = np.float32(2**14)  # of the mean, whose largest value is 1
_LEVELS = 7  # of a deviation, on each side of 0
_PAIRS = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1).astype(np.float32) - _LEVELS - 1  # of a byte
_CENTRED = 0.02  # share of the picture by which opposite bars may differ
# Down and across, the K lowest frequencies but for the mean; pictures are wider than high.
_ORDER = sorted(
    ((down, across) for down in range(8) for across in range(8) if down or across),
    key=lambda at: (1.44 * at[0] ** 2 + at[1] ** 2, at),
)[:K]
_DOWN, _ACROSS = (np.array(axis) for axis in zip(*_ORDER, strict=True))
FREQUENCIES = np.hypot(1.2 * _DOWN, _ACROSS)
MIRROR = np.where(_ACROSS % 2, -1, 1).astype(np.float32)  # what mirroring does to the coefficients


class Unpacked(NamedTuple):
    """A hash as numbers: the clip's mean picture, K, and how each step differs from it, T K; overall energy is 1."""

    mean: np.ndarray
    change: np.ndarray


@dataclasses.dataclass(kw_only=True)
class VideoHash(Filter):
    """A hash by which ``duplicates`` compares clips; it survives other encoding, size, rate, brightness, small crops.

    Writes:
        video_hash: bytes, 52 and 12 for every quarter of a second: a float32 unit of change, the mean picture as K = 24
            int16, then per step K differences from it, of four bits each. Unknown for clips of less than a second and
            for those that show hardly anything, such as black.

    Bars of letterboxing are cut off first. See ``filters.duplicates`` for what is made of it.
    """

    name: ClassVar[str] = "video_hash"
    frames: ClassVar[Frames] = Frames(fps=8, long_side_px=96)  # as motion asks for: no picture is scaled twice
    writes: ClassVar[pa.Schema] = pa.schema([("video_hash", pa.binary())])

    def score(self, frames: np.ndarray, times: np.ndarray) -> Any:
        if len(frames) < 2:
            return None
        steps = on_grid(coefficients(unbarred(frames)), times)
        flat = _FLAT * _SIDE_PX  # the transform is orthonormal
        return pack(steps) if len(steps) >= FEWEST and energy(steps) > flat**2 else None


def unbarred(frames: np.ndarray) -> np.ndarray:
    """Grey frames T H W without their bars.

    Only bars that are alike on both sides: where the ground is black, what looks like a bar depends on what moves.
    """
    height, width = frames.shape[1:]
    left, top, right, bottom = bars(frames)
    across = min(left, right) if abs(left - right) <= _CENTRED else 0.0
    down = min(top, bottom) if abs(top - bottom) <= _CENTRED else 0.0
    x, y = round(across * width), round(down * height)
    return frames[:, y : height - y, x : width - x]


def coefficients(frames: np.ndarray) -> np.ndarray:
    """The lowest frequencies of grey frames T H W: T K float32."""
    small = (cv2.resize(frame, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA) for frame in frames)
    return np.stack([cv2.dct(picture.astype(np.float32))[_DOWN, _ACROSS] for picture in small])


def on_grid(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Values T K at uneven times, in steps of STEP_S from the first one on."""
    grid = np.arange(times[0], times[-1] + 1e-6, STEP_S)
    return np.stack([np.interp(grid, times, column) for column in values.T], axis=1).astype(np.float32)


def energy(steps: np.ndarray) -> float:
    """Mean over time of the sum of squares."""
    return float(np.square(steps).sum(axis=1).mean())


def pack(steps: np.ndarray) -> bytes:
    """Steps T K as bytes."""
    steps = steps / math.sqrt(energy(steps))
    mean = np.round(steps.mean(axis=0) * _UNIT).astype("<i2")
    change = steps - mean / _UNIT
    unit = np.float32(max(min(np.abs(change).max(), 4 * np.sqrt(np.square(change).mean())), 1e-6) / _LEVELS)
    levels = np.clip(np.round(change / unit), -_LEVELS, _LEVELS).astype(np.int8).ravel() + _LEVELS + 1
    return unit.tobytes() + mean.tobytes() + (levels[::2] | levels[1::2] << 4).astype(np.uint8).tobytes()


def unpack(packed: bytes) -> Unpacked:
    """What ``pack`` made."""
    unit = np.frombuffer(packed, "<f4", count=1)
    mean = np.frombuffer(packed, "<i2", count=K, offset=4) / _UNIT
    steps = np.frombuffer(packed, np.uint8, offset=HEADER_BYTES).reshape(-1, STEP_BYTES)
    return Unpacked(mean, _levels(steps) * unit)


def _levels(packed: np.ndarray) -> np.ndarray:
    return _PAIRS[packed].reshape(*packed.shape[:-1], -1)


class Hashes:
    """Many hashes, as numbers where they are asked for.

    Attributes:
        counts: how many steps each has.
        first: which step of all steps, one clip after the other, is its first one.
    """

    def __init__(self, packed: pa.ChunkedArray) -> None:
        joined = packed.cast(pa.large_binary()).combine_chunks()
        array = joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)
        _, offsets, data = array.buffers()
        self._starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        self._bytes = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        self.counts = (np.diff(self._starts) - HEADER_BYTES) // STEP_BYTES
        self.first = np.cumsum(self.counts) - self.counts

    def steps(self, low: int, high: int) -> np.ndarray:
        """The steps of the clips from ``low`` to ``high``, one clip after the other: T K."""
        counts = self.counts[low:high]
        clips = np.arange(low, low + len(counts))
        local = np.arange(counts.sum()) - np.repeat(self.first[low:high] - self.first[low], counts)
        return self._read(np.repeat(clips, counts), local)

    def at(self, clips: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Steps N T of the clips N: N T K."""
        values = self._read(np.repeat(clips, steps.shape[1]), steps.ravel())
        return values.reshape(*steps.shape, K)

    def _read(self, clips: np.ndarray, steps: np.ndarray) -> np.ndarray:
        at = self._starts[clips] + HEADER_BYTES + STEP_BYTES * steps
        values = _levels(self._bytes[at[:, None] + np.arange(STEP_BYTES)])
        which, inverse = np.unique(clips, return_inverse=True)
        heads = self._bytes[self._starts[which][:, None] + np.arange(HEADER_BYTES)]
        unit = np.ascontiguousarray(heads[:, :4]).view("<f4")
        mean = np.ascontiguousarray(heads[:, 4:]).view("<i2") / _UNIT
        values *= unit[inverse]
        values += mean[inverse]
        return values
