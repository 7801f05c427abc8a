"""Activation checkpointing: memory for time, applied to a model from outside."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Have every block forget what it computed and compute it again in the backward pass. In place, once.

    About a third more time for a fraction of the memory. Names of parameters stay, and without gradients (in
    evaluation) nothing changes.
    """
    for block in blocks:
        if "forward" not in vars(block):
            vars(block)["forward"] = functools.partial(checkpoint, block.forward, use_reentrant=False)
