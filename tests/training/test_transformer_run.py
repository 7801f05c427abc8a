"""``cutroom train transformer``: from shards, a VAE and a YAML file to a pipeline that others open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import ConfigError, UsageError
from curation.torchvision import mend
from tests.training.transformer_helpers import TINY
from tests.training.transformer_made import equal, quiet, weights, write_config, write_models, write_shards
from training.recipes import find_recipe
from training.transformer.model import Transformer
from training.transformer.preflight import look_ahead
from training.transformer.run import load, train_transformer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(shards: Path, start: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "transformer.yaml", shards, start)


def test_four_and_four_steps_are_eight_bit_for_bit(config: Path, tmp_path: Path) -> None:
    figures = train_transformer(config, tmp_path / "whole", say=quiet)
    assert set(figures) == {"loss", "loss_t125", "loss_t375", "loss_t625", "loss_t875"}
    train_transformer(config, tmp_path / "halves", changes=["training.steps=4"], say=quiet)
    half = weights(tmp_path / "halves")
    train_transformer(config, tmp_path / "halves", changes=["data.prefetch=1"], say=quiet)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    assert not equal(half, weights(tmp_path / "halves"))
    samples = sorted(path.name for path in (tmp_path / "whole" / "samples").iterdir())
    assert samples[-3:] == ["step-00000008.jpg", "step-00000008.mp4", "step-00000008.txt"]
