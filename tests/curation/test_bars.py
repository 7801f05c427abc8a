"""transformers draws no bars where Cutroom loads and saves, and draws them again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.bars import no_bars
from tests.filters import tiny
from training.transformer.text import TextEncoder
from training.transformer.words import write_words


def test_writing_and_loading_a_text_encoder_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_words(tmp_path / "words", ["a red ball"], width=16)
    TextEncoder.from_pretrained(tmp_path / "words")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("downloads", [True, False])
def test_bars_are_as_before_afterwards(downloads: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers import AutoModel
    from transformers.utils import logging

    folder = tiny.dino(tmp_path / "dino")
    logging.enable_progress_bar()
    try:
        enable_progress_bars() if downloads else disable_progress_bars()
        with pytest.raises(RuntimeError, match="inside"), no_bars():
            AutoModel.from_pretrained(folder, add_pooling_layer=False)
            assert are_progress_bars_disabled() != downloads  # what takes minutes is still shown
            raise RuntimeError("inside")
        assert "Loading weights" not in capfd.readouterr().err
        assert logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled() != downloads
        AutoModel.from_pretrained(folder, add_pooling_layer=False)
        assert "Loading weights" in capfd.readouterr().err
    finally:
        enable_progress_bars()


def test_bars_that_are_off_stay_off() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with no_bars():
            pass
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()
