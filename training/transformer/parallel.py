"""Context parallelism by Ulysses: the tokens of a batch or pack over several ranks, with one process's result.

    with context_parallel(transformer, group):
        v = transformer(latents, text, t)          # the same on all ranks of the group, whole on each
        loss = losses(v, target).mean()            # likewise
        loss.backward()

Each rank runs the blocks on its part of the text and of the video tokens. Around attention ranks exchange: each gets
all tokens for its share of the heads, and gives them back (DeepSpeed Ulysses, arXiv 2309.14509). The gradients on a
rank are those that go through its own tokens: their sum over the group is the gradient of the loss. FSDP2 over the
ranks of the group averages where this needs a sum: there, multiply the loss by the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from curation.errors import UsageError
from training.transformer.attention import Attend
from training.transformer.layers import Layout
from training.transformer.model import Share, Transformer

Shapes = list[tuple[int, ...]]


@contextmanager
def context_parallel(transformer: Transformer, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Within it, the ranks of ``group`` share the tokens of each call, which must be the same on all of them.

    Backward may run after it, but on all ranks. Raises UsageError if heads cannot be shared evenly.
    """
    found = dist.group.WORLD if group is None else group
    if found is None:
        raise RuntimeError("context parallelism needs torch.distributed: call init_process_group, or start by torchrun")
    heads = transformer.config.num_attention_heads
    if heads % found.size():
        raise UsageError(f"{heads} heads cannot be shared by {found.size()} ranks; use a number that divides {heads}")
    before = transformer.share
    transformer.share = SharedTokens(found)
    try:
        yield
    finally:
        transformer.share = before


class SharedTokens(Share):
    """This rank's part of the text tokens and of the video tokens, each cut as evenly as can be."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._video: list[int] = []  # tokens of each rank

    def take(self, text: Tensor, video: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Layout]:
        words, tokens = text.shape[1], video.shape[1]
        self._video = self._parts(tokens)
        turns = layout.turns
        if turns is not None:
            turns = torch.cat([self._mine(turns[:words], 0), self._mine(turns[words:], 0)])
        mine = Layout(
            rows=layout.rows,
            text=self._mine(layout.text, 1) if layout.text.shape[1] > 1 else layout.text,
            video=self._mine(layout.video, 1) if layout.video.shape[1] > 1 else layout.video,
            turns=turns,
            attend=_exchanging(layout.attend, self.group, text=self._parts(words), video=self._video),
        )
        return self._mine(text, 1), self._mine(video, 1), mine

    def join(self, video: Tensor) -> Tensor:
        joined: Tensor = Join.apply(video, self._video, self.group)  # type: ignore[no-untyped-call]
        return joined

    def _parts(self, count: int) -> list[int]:
        share, more = divmod(count, self.group.size())
        return [share + (rank < more) for rank in range(self.group.size())]

    def _mine(self, x: Tensor, dim: int) -> Tensor:
        return torch.split(x, self._parts(x.shape[dim]), dim=dim)[self.group.rank()]


def _exchanging(attend: Attend, group: dist.ProcessGroup, *, text: list[int], video: list[int]) -> Attend:
    """``attend`` on all tokens for this rank's heads; ``text`` and ``video`` are how many tokens each rank has."""
    counts = [words + tokens for words, tokens in zip(text, video, strict=True)]
    size, own = group.size(), counts[group.rank()]

    def shared(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        x = torch.stack([query, key, value])  # (3, B, n, heads, D)
        batch, heads, head = x.shape[1], x.shape[3] // size, x.shape[4]
        parts = _exchange(list(x.chunk(size, dim=3)), [(3, batch, count, heads, head) for count in counts], group)
        halves = [torch.split(part, [w, v], dim=2) for part, w, v in zip(parts, text, video, strict=True)]
        whole = torch.cat([words for words, _ in halves] + [tokens for _, tokens in halves], dim=2)
        out = attend(*whole.unbind(0))  # (B, N, heads / size, D)
        pieces = torch.split(out, [*text, *video], dim=1)
        back = [torch.cat([pieces[rank], pieces[size + rank]], dim=1) for rank in range(size)]
        return torch.cat(_exchange(back, [(batch, own, heads, head)] * size, group), dim=2)

    return shared


def _exchange(send: list[Tensor], shapes: Shapes, group: dist.ProcessGroup) -> list[Tensor]:
    return list(Exchange.apply(group, shapes, *send))  # type: ignore[no-untyped-call]


class Exchange(Function):
    """Send the i-th tensor to the i-th rank and receive one of the i-th shape from it; backward, the other way."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, shapes: Shapes, *send: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.shapes = group, [tuple(x.shape) for x in send]
        return _swap(send, shapes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_swap(grads, ctx.shapes, ctx.group)


class Join(Function):
    """Every rank's part (B, n, C) to the whole (B, N, C) on each; backward, the part of the gradient that is its own.

    Every rank computes the same loss of the whole. Adding up what all ranks send back would count it once a rank.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts, ctx.rank = counts, group.rank()
        shapes: Shapes = [(x.shape[0], count, x.shape[2]) for count in counts]
        return torch.cat(_swap((x,) * group.size(), shapes, group), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch.split(grad, ctx.counts, dim=1)[ctx.rank].contiguous(), None, None


def _swap(send: tuple[Tensor, ...], shapes: Shapes, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    sizes = [math.prod(shape) for shape in shapes]
    flat = torch.cat([x.flatten() for x in send])
    received = flat.new_empty(sum(sizes))
    dist.all_to_all_single(received, flat, sizes, [x.numel() for x in send], group=group)
    return tuple(part.view(shape) for part, shape in zip(torch.split(received, sizes), shapes, strict=True))
