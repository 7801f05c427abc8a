"""Stages that break their contract, for tests."""

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
