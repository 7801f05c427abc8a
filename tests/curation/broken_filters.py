"""Stages that fail, or are changed behind the back of a run, for tests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter, Stage


@dataclasses.dataclass(kw_only=True)
class Liar(Stage):
    """Declares a column and returns another."""

    name = "liar"
    reads = ("duration_s",)
    writes = pa.schema([("truth", pa.float32())])

    def process(self, clips: pa.Table) -> pa.Table:
        return pa.table({"lie": clips["duration_s"]})


@dataclasses.dataclass(kw_only=True)
class Fussy(Stage):
    """Cannot stand short clips."""

    name = "fussy"
    reads = ("duration_s",)
    writes = pa.schema([("fuss", pa.float32())])

    shortest_s: float = 1.0

    def process(self, clips: pa.Table) -> pa.Table:
        durations = clips["duration_s"].to_pylist()
        if min(durations) < self.shortest_s:
            raise ValueError("too short for me")
        return pa.table({"fuss": pa.array(durations, pa.float32())})


@dataclasses.dataclass(kw_only=True)
class Picky(Stage):
    """Cannot stand long clips."""

    name = "picky"
    reads = ("duration_s",)
    writes = pa.schema([("pick", pa.float32())])

    longest_s: float = 1.0

    def process(self, clips: pa.Table) -> pa.Table:
        durations = clips["duration_s"].to_pylist()
        if max(durations) > self.longest_s:
            raise ValueError("too long for me")
        return pa.table({"pick": pa.array(durations, pa.float32())})


@dataclasses.dataclass(kw_only=True)
class Bright(Filter):
    """Measures in the decode pass, in a type of one's choice."""

    name = "bright"
    frames = Frames(fps=2, long_side_px=32)

    gain: float = 1.0
    whole: bool = False

    @property
    def writes(self) -> pa.Schema:  # type: ignore[override]
        return pa.schema([("brightness", pa.int32() if self.whole else pa.float32())])

    def score(self, frames: np.ndarray, times: np.ndarray) -> float:
        level = self.gain * float(np.mean(frames))
        return round(level) if self.whole else level
