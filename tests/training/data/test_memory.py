"""The loader's memory does not grow with the number of clips, nor with the number that it has handed out."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import psutil
import pytest

from shards.read import read_catalogue
from tests.training.data.made import clip, row, sample, settings, write_tar
from training.data.loader import Loader

PER_SHARD = 500


def write_many(folder: Path, count: int) -> Path:
    """Shards of so many copies of one tiny clip."""
    parts = {"mp4": clip(), "txt": b"a film of numbers", "json": row(motion_score=0.5)}
    for shard in range(-(-count // PER_SHARD)):
        numbers = range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD))
        write_tar(folder / f"{shard:06d}.tar", ((f"clip-{i:09d}", parts) for i in numbers))
    return folder


def read_some(folder: Path) -> None:
    """In a process of its own: read 400 batches, and print what it and its children hold after 100 and after all.

    The first batches are left out: modules and buffers come with them. Neither is near a multiple of 250, where the
    decoder of two clips a batch is exchanged for a fresh one (see ``curation.isolate``).
    """
    with Loader(settings(folder, batch_size=2), workers=1) as loader:
        held = {number: _resident() for number, _ in zip(range(401), loader, strict=False) if number in (100, 400)}
        print(json.dumps({"early": held[100], "late": held[400], "samples": loader.plan(0).counts()[0, False][0]}))


def _resident() -> int:
    gc.collect()
    this = psutil.Process()
    return sum(process.memory_info().rss for process in (this, *this.children()))


def measured(folder: Path) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.training.data.test_memory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_memory_is_flat_from_100_to_10_000_clips(tmp_path: Path) -> None:
    few, many = (measured(write_many(tmp_path / str(count), count)) for count in (100, 10_000))
    assert (few["samples"], many["samples"]) == (100, 10_000)
    for one in (few, many):
        assert abs(one["late"] - one["early"]) < 8 << 20
    # The catalogue of 10,000 clips and two plans of them, 200 bytes each, and what allocators keep of making them.
    assert many["late"] - few["late"] < 48 << 20


def test_a_clip_costs_a_few_hundred_bytes_of_plan_and_catalogue(tmp_path: Path) -> None:
    """Traced in this process, as Python and numpy see it, and the catalogue as Arrow does."""
    used = [_used(tmp_path / str(count), count) for count in (500, 3500)]
    assert used[1] - used[0] < 3000 * 250


def _used(folder: Path, count: int) -> int:
    write_tar(folder / "0.tar", [(f"{i:09d}", {**sample(0)[1], "mp4": b"x"}) for i in range(count)])
    with Loader(settings(folder), workers=0):
        pass  # imports what is needed, once
    catalogue = read_catalogue(folder)
    tracemalloc.start()
    try:
        with Loader(settings(folder), workers=0, catalogue=catalogue) as loader:
            loader.plan(1)
            gc.collect()
            return tracemalloc.get_traced_memory()[0] + int(catalogue.table.nbytes)
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    read_some(Path(sys.argv[1]))
