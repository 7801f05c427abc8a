"""Which frames of a clip are given to the model as they are, to learn to go on from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Draw = Callable[[], float]
"""A number in [0, 1)."""


def _first(frames: int, draw: Draw) -> slice:
    return slice(0, 1)


def _last(frames: int, draw: Draw) -> slice:
    return slice(frames - 1, frames)


def _quarter(frames: int) -> int:
    return max(1, frames // 4)


def _quarter_first(frames: int, draw: Draw) -> slice:
    return slice(0, _quarter(frames))


def _quarter_last(frames: int, draw: Draw) -> slice:
    return slice(frames - _quarter(frames), frames)


def _quarter_random(frames: int, draw: Draw) -> slice:
    start = int(draw() * (frames - _quarter(frames) + 1))
    return slice(start, start + _quarter(frames))


def _every_other(frames: int, draw: Draw) -> slice:
    return slice(0, None, 2)


MASKS: Mapping[str, tuple[Callable[[int, Draw], slice], ...]] = {
    "first": (_first,),  # image-to-video
    "last": (_last,),
    "first_last": (_first, _last),  # between two pictures, and loops
    "quarter_first": (_quarter_first,),  # to extend a clip
    "quarter_last": (_quarter_last,),  # what came before
    "quarter_first_last": (_quarter_first, _quarter_last),  # between two clips
    "quarter_random": (_quarter_random,),
    "every_other": (_every_other,),  # more frames a second
    "random": (),  # each frame by itself, at even odds
}
"""What may be given, by name. Frames are those of latents: the first stands for one picture, each other for four.

Source: the masks of Open-Sora 1.2 (image_head, image_tail, quarter_head, interpolate, random ...).
"""


def mask(name: str, frames: int, draw: Draw) -> Tensor:
    """Bool (frames,): which are given. At least one of them never is."""
    given = torch.zeros(frames, dtype=torch.bool)
    for span in MASKS[name]:
        given[span(frames, draw)] = True
    if name == "random":
        given = torch.tensor([draw() < 0.5 for _ in range(frames)])
    if given.all():
        given[int(draw() * frames)] = False
    return given


def draw_mask(shares: Mapping[str, float], frames: int, draw: Draw) -> Tensor | None:
    """A mask drawn by the shares of each; None where none is given, as always where there is but one frame."""
    place = draw()
    if frames < 2:
        return None
    for name, share in shares.items():
        if place < share:
            return mask(name, frames, draw)
        place -= share
    return None
