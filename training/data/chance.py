"""Chance that can be repeated: what is drawn for a sample depends on seed, epoch, purpose and key alone."""

from __future__ import annotations

import hashlib

import numpy as np


def draws(seed: int, epoch: int, purpose: str, key: str) -> np.ndarray:
    """Eight numbers in [0, 1) that depend on nothing else, on any machine."""
    text = f"{seed}/{epoch}/{purpose}/{key}"
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=64).digest(), "<u8")
    return (words >> np.uint64(11)) * 2.0**-53
