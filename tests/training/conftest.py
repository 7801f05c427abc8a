"""Models here are tiny: a second thread would cost more than it gains, and where tests run side by side, much more."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)  # for each test: what others ran in this process may have set it
def _one_thread() -> None:
    torch.set_num_threads(1)
