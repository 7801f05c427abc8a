"""Stages that fail, for tests."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from curation.stage import Stage


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
