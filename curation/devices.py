"""Where models compute."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from curation.errors import UsageError

if TYPE_CHECKING:
    import torch


def find_device(device: str | None) -> torch.device:
    """The device that is asked for; by default a GPU where there is one. Of several processes each has its own GPU.

    Raises:
        UsageError: there is no such.
    """
    import torch

    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.type == "meta":
            raise RuntimeError("nothing can be computed there")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # the latter of a PyTorch without CUDA
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--device {device}: there is no device {device!r} here ({why}); cpu, cuda or cuda:1 are meant"
        ) from error
    return chosen
