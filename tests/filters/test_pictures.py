"""Embedding pictures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from filters.pictures import embed


def test_pictures_are_embedded_some_at_a_time_and_in_order() -> None:
    jpegs = [cv2.imencode(".png", np.full((4, 4, 3), (0, 0, i), np.uint8))[1].tobytes() for i in range(5)]  # B G R
    sizes = []

    def encode(some: list[Any]) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        sizes.append(len(some))
        return torch.tensor([picture.getpixel((0, 0)) for picture in some], dtype=torch.float16)

    found = []
    for vector in embed(encode, jpegs, batch=2):
        assert not torch.is_inference_mode_enabled(), "whoever takes the vectors is not to be in it too"
        found.append(vector)
    assert np.stack(found).tolist() == [[i, 0, 0] for i in range(5)]
    assert found[0].dtype == np.float32
    assert sizes == [2, 2, 1]


def test_without_pictures_nothing_is_loaded() -> None:
    assert list(embed(lambda some: 1 / 0, [], batch=2)) == []
