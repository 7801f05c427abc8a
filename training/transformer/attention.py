"""Attention within each sample of a pack, in four ways with one result. The way is chosen by name, never silently.

A pack is one sequence: the text tokens of all its samples, then the video tokens of all its samples. A batch needs
none of this: there each row is a sample, and attention is plain.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from curation.errors import UsageError, nearest


@dataclasses.dataclass(frozen=True)
class Segments:
    """How many text and video tokens each sample of a pack has, in the order in which they stand."""

    text: tuple[int, ...]
    video: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [text + video for text, video in zip(self.text, self.video, strict=True)]

    def ids(self, device: torch.device) -> Tensor:
        """Which sample each token belongs to: (N,)."""
        counts = torch.tensor(self.text + self.video, device=device)
        return torch.arange(len(self.text), device=device).repeat(2).repeat_interleave(counts)

    def together(self, x: Tensor) -> list[Tensor]:
        """Cut ``x`` (B, N, ...) into samples, the text of each followed by its video."""
        pieces = torch.split(x, [*self.text, *self.video], dim=1)
        count = len(self.text)
        return [torch.cat([pieces[i], pieces[count + i]], dim=1) for i in range(count)]

    def apart(self, samples: list[Tensor]) -> Tensor:
        """Undo ``together``: all texts, then all videos."""
        halves = [torch.split(x, [text, x.shape[1] - text], dim=1) for x, text in zip(samples, self.text, strict=True)]
        return torch.cat([text for text, _ in halves] + [video for _, video in halves], dim=1)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (B, N, heads, D) to what was attended to, in the same shape."""

Attention = Callable[[Segments | None, torch.device], Attend]
"""Called once a forward pass, before the blocks: what all layers share (masks, offsets) is made once."""


def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every token attends to every token of its row."""
    return _sdpa(query, key, value, None)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, heads, N, D)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def split(segments: Segments | None, device: torch.device) -> Attend:
    """One plain call for each sample: exact and on any device, and the work is the sum of squares of the lengths."""
    if segments is None:
        return whole

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        samples = zip(segments.together(query), segments.together(key), segments.together(value), strict=True)
        return segments.apart([whole(q, k, v) for q, k, v in samples])

    return attend


def mask(segments: Segments | None, device: torch.device) -> Attend:
    """One call with a mask (N, N): the work is the square of the whole length. For shapes that must stay fixed.

    A value that is no number spreads to other samples here: what the mask hides is multiplied by 0, not left out.
    """
    if segments is None:
        return whole
    ids = segments.ids(device)
    return functools.partial(_sdpa, mask=ids[:, None] == ids[None, :])


def flex(segments: Segments | None, device: torch.device) -> Attend:
    """``flex_attention``, compiled on a GPU: blocks of 128 x 128 between different samples are skipped.

    It has no backward pass on a CPU (torch 2.13), where it is for comparison only.
    """
    if segments is None:
        return whole
    from torch.nn.attention.flex_attention import create_block_mask

    ids = segments.ids(device)
    length = ids.shape[0]

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ids[query] == ids[key]

    blocks = create_block_mask(same, None, None, length, length, device=device)
    attention = _flex(compiled=device.type != "cpu")

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        out: Tensor = attention(q, k, v, block_mask=blocks)
        return out.transpose(1, 2)

    return attend


@functools.cache
def _flex(*, compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = flex_attention
    return torch.compile(attention, dynamic=True) if compiled else attention


def varlen(segments: Segments | None, device: torch.device) -> Attend:
    """Flash attention over the samples laid end to end: the fastest for packs on a GPU, in fp16 and bf16 only.

    Raises UsageError on a CPU, which has no such kernel.
    """
    if segments is None:
        return whole
    if device.type == "cpu":
        raise UsageError("attention 'varlen' runs on a GPU only; choose 'split' or 'mask' on a CPU")
    from torch.nn.attention.varlen import varlen_attn

    lengths = segments.lengths
    ends = torch.tensor([0, *lengths], device=device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(lengths)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (torch.cat(segments.together(x), dim=1)[0] for x in (query, key, value))  # (N, heads, D)
        out = varlen_attn(q, k, v, ends, ends, longest, longest)
        assert isinstance(out, Tensor)
        return segments.apart(list(torch.split(out[None], lengths, dim=1)))

    return attend


ATTENTION: Mapping[str, Attention] = {"split": split, "mask": mask, "flex": flex, "varlen": varlen}
_ON_GPU = ("flex", "varlen")


def attention(name: str) -> Attention:
    """The way of attending called ``name``; UsageError if there is none."""
    if name not in ATTENTION:
        raise UsageError(f"no attention {name!r}.{nearest(name, ATTENTION)}")
    return ATTENTION[name]


def check_learns(name: str) -> None:
    """Raises UsageError if the way called ``name`` has no backward pass on this machine."""
    if name in _ON_GPU and not torch.cuda.is_available():
        raise UsageError(f"packing.attention {name} learns on a GPU only, and there is none here: choose split or mask")
