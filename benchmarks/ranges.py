"""What decoding a film in ranges by several workers saves: wall time against one worker, in turn, as ratios.

    python -m benchmarks.ranges [--json] [--pairs N] [--minutes 20] [--workers 2] [VIDEO]

Every way ends with the same rows, which is checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.long_film import make_film
from curation.clips import Range
from curation.config import load_plan
from curation.decode import Decode, Decoded, Decoder, join
from curation.fingerprint import Lengths
from curation.isolate import Isolated
from curation.plan import Step
from curation.ranges import range_parts, span
from curation.sheets import take_sheets


class Workers:
    """So many decoders in processes of their own, each with so many threads."""

    def __init__(self, count: int, threads: int) -> None:
        plan = load_plan("weight_free")
        assert isinstance(plan.decode.stage, Decode)
        self.settings = dataclasses.replace(plan.decode.stage, threads=threads)
        decoder = Decoder(Step(self.settings, plan.decode.mark, plan.decode.rules), plan.dense)
        self.children = [Isolated(decoder, stall_s=60.0) for _ in range(count)]
        for child in self.children:
            child.start()

    def decode(self, path: Path, ranges: list[Range], folder: Path) -> Decoded:
        """Decode these ranges, each by the worker that is free next, and put them together."""
        row, free = {"video": path.name, "video_id": "0" * 24}, list(self.children)

        def work(i: int) -> Any:
            child = free.pop()
            try:
                return child.call(str(path), row, ranges[i], str(folder / f"{i}.arrow"))
            finally:
                free.append(child)

        with ThreadPoolExecutor(len(self.children)) as pool:
            pieces = list(pool.map(work, range(len(ranges))))
        return join(row, "", pieces, [take_sheets(folder / f"{i}.arrow") for i in range(len(ranges))])

    def close(self) -> None:
        for child in self.children:
            child.close()


def ratio(these: list[float], those: list[float]) -> float:
    """The median of the ratios pair by pair."""
    return round(statistics.median(a / b for a, b in zip(these, those, strict=True)), 3)


def main() -> None:
    """Decode the film in three ways, in turn."""
    parser = argparse.ArgumentParser(description="Wall time of a film decoded in ranges.")
    parser.add_argument("video", nargs="?")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ways = {
        "one worker, one thread": Workers(1, 1),
        f"one worker, {arguments.workers} threads": Workers(1, arguments.workers),
        f"{arguments.workers} workers, one thread each": Workers(arguments.workers, 1),
    }
    *single, several = ways
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(arguments.video) if arguments.video else make_film(folder, arguments.minutes, 24)
        settings = ways[several].settings
        row = {"video_id": "0" * 24, "bytes": path.stat().st_size, "duration_s": Lengths()(str(path))}
        ranges = [span(part.id, settings.grid_s) for part in range_parts([row], settings.grid_s)]
        for _ in range(arguments.pairs):
            answers = []
            for way, workers in ways.items():
                started = time.monotonic()
                answers.append(workers.decode(path, ranges if way == several else [Range()], folder))
                seconds[way].append(time.monotonic() - started)
            assert all(a.video == answers[0].video and a.clips.equals(answers[0].clips) for a in answers)
    for workers in ways.values():
        workers.close()
    rows: list[dict[str, Any]] = [
        {
            "way": way,
            "wall_s": round(statistics.median(seconds[way]), 2),
            **{f"of {other}": ratio(seconds[way], seconds[other]) for other in single},
        }
        for way in ways
    ]
    if arguments.json:
        print(json.dumps({"ranges": len(ranges), "rows": rows}, indent=1))
        return
    table = Table(*rows[0], title=f"{len(ranges)} ranges", box=None)
    for each in rows:
        table.add_row(*map(str, each.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
