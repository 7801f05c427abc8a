"""Embedding pictures, some at a time, by whatever encoder."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


def embed(encode: Callable[[list[Any]], Any], jpegs: Sequence[bytes], *, batch: int) -> Iterator[np.ndarray]:
    """Embeddings of pictures, float32 D, one after the other.

    Args:
        encode: PIL pictures in RGB to their embeddings, a tensor B D. Called only where there is something to do, so
            that it may load its model then.
        jpegs: the pictures.
        batch: so many are computed together.
    """
    for start in range(0, len(jpegs), batch):
        import torch
        from PIL import Image

        pictures = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs[start : start + batch]]
        with torch.inference_mode():
            vectors = encode(pictures).float().cpu().numpy()
        yield from vectors
