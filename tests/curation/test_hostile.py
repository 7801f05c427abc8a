"""Files that are damaged, that lie or that mean harm: each costs one video, with the reason, and nothing else."""

from __future__ import annotations

import collections
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from curation.engine import EngineName
from curation.isolate import Isolated
from curation.run import run
from curation.table import Store
from tests.mutants import make_all, mutants

STALL_S = 20.0


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind."""
    return make_all(tmp_path_factory.mktemp("seeds"))


def curate(files: Path, output: Path, engine: EngineName, **settings: Any) -> list[dict[str, Any]]:
    """Run a pipeline over a folder and return the video rows, whose counts agree with the clips'."""
    config = output.with_suffix(".yaml")
    stages = [{"decode": {"stall_s": STALL_S, **settings}}, "motion", "quality"]
    config.write_text(yaml.safe_dump({"hostile": {"about": "For tests.", "stages": stages, "keep": {}}}))
    if engine == "local":
        run("hostile", [str(files)], output, config=str(config), engine="local", shards=False)
    else:  # its own process: Ray Data warns of its own deprecations
        script = "import sys; from curation.run import run; run(*sys.argv[1:2], sys.argv[2:3], *sys.argv[3:4], "
        script += "config=sys.argv[4], shards=False)"
        arguments = ["hostile", str(files), str(output), str(config)]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    store = Store(output)
    videos, clips = store.videos().to_pylist(), store.clips().to_pylist()
    assert sorted(Path(row["video"]).name for row in videos) == sorted(path.name for path in files.iterdir())
    assert len({clip["clip_id"] for clip in clips}) == len(clips)
    num_clips = collections.Counter(clip["video"] for clip in clips)
    for row in videos:
        assert (row["status"], bool(row["error"])) in {("done", False), ("done", True), ("failed", True)}
        assert row["num_clips"] == num_clips[row["video"]]
    return videos


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """(seconds, resident bytes of the child afterwards) of every call that a decoder's process answers."""
    calls = []
    original = Isolated.call

    def call(self: Isolated, *args: Any) -> Any:
        start = time.monotonic()
        try:
            return original(self, *args)
        finally:
            held = psutil.Process(self.pid).memory_info().rss if self.pid else 0
            calls.append((time.monotonic() - start, held))

    monkeypatch.setattr(Isolated, "call", call)
    return calls


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_every_damaged_file_ends_as_one_row_in_time_and_in_memory(
    count: int, seeds: dict[str, bytes], tmp_path: Path, watched: list[tuple[float, int]]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in mutants(seeds, count):
        (folder / name).write_bytes(data)
    videos = curate(folder, tmp_path / "out", "local")
    status = collections.Counter(row["status"] for row in videos)
    assert status["done"] > count / 3  # most damage is survived
    assert status["failed"] > count / 20
    assert max(seconds for seconds, _ in watched) < STALL_S + 10
    held = [size for _, size in watched if size]
    early, late = held[count // 10 : count // 10 + 20], held[-20:]
    assert np.median(late) < np.median(early) + (50 << 20)


@pytest.mark.slow
def test_damaged_files_end_as_rows_on_ray_too(seeds: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in mutants(seeds, 500):
        (folder / name).write_bytes(data)
    on_ray = curate(folder, tmp_path / "ray", "ray")
    local = curate(folder, tmp_path / "local", "local")
    facts = ("video", "status", "num_clips", "num_frames")
    assert [[row[name] for name in facts] for row in on_ray] == [[row[name] for name in facts] for row in local]
