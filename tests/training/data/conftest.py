"""Shards that many tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.made import curate, write_films


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films") / "in", 5)


@pytest.fixture(scope="session")
def curated(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run: 15 clips of 20 frames in 4 shards. Do not change it."""
    return curate(films, tmp_path_factory.mktemp("curated") / "out", "{max_samples: 4}")
