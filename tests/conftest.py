"""Shared by all tests: footage of known truth, made once, and runs of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch: tests run on all cores side by side, and threads that wait for one another by spinning
# would take those from them. Commands that tests run inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

from curation.footage import DEMO, make_footage
from curation.run import run
from curation.table import Store

PIPELINE = "weight_free"


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder of films, with captions, truth and two broken files."""
    folder = tmp_path_factory.mktemp("footage")
    make_footage(folder, DEMO)
    return folder


@pytest.fixture(scope="session")
def truth(footage: Path) -> dict[str, Any]:
    """What is true of each film."""
    return make_footage(footage, DEMO)


@pytest.fixture(scope="session")
def finished(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed local run over the footage. Do not change it."""
    output = tmp_path_factory.mktemp("finished") / "out"
    run(PIPELINE, [str(footage)], output, engine="local")
    return output


@pytest.fixture(scope="session")
def clips(finished: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Store(finished).clips().to_pylist()
    return rows


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Real clips with an index and ground truth; tests that use them are skipped where they are not there."""
    folder = Path(os.environ.get("CUTROOM_TEST_VIDEOS", "../shared/videos"))
    if not (folder / "INDEX.csv").exists():
        pytest.skip(f"no real clips in {folder}; set CUTROOM_TEST_VIDEOS")
    return folder.resolve()
