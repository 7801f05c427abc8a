"""Bars of progress that transformers draws by itself, kept off where a command has its own or wants none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Inside, transformers loads and saves weights without a bar; downloads keep theirs. Then all is as before."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()  # those of the hub too
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()
