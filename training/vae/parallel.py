"""Temporal context parallelism: one video's frames over several ranks, with the results and gradients of one process.

    span = split_frames(video.shape[2], ranks)[rank]          # of one video, known to all ranks of the group
    with context_parallel(vae, group):
        reconstruction, posterior = vae(video[:, :, span])
    share = (reconstruction - video[:, :, span]).abs().sum() / video.numel()
    share.backward()

The ranks' shares of a loss add up to that of the whole video, and their gradients to its gradients. FSDP2 over the
ranks averages gradients where this needs their sum: there, multiply the loss by the number of ranks.

Rank 0 holds 4k+1 frames and every other rank 4m, so that no rank splits a latent. What crosses ranks:

* Each causal convolution sends the last frames of its input to the next rank, and the backward pass sends their
  gradient back. (CogVideoX's released code drops that gradient: weight gradients are then off by 8% and more.)
* GroupNorm's mean and variance are those of all ranks' frames together, as in one process that encodes the video
  whole, and its backward pass sums over all ranks what goes through them.
* The first frame is set apart in time on rank 0 alone, which holds it.

So the result is that of a whole pass, not of a pass in chunks; each rank may hold another number of frames, but at
least one latent's. Every rank must run the same layers, and backward, in the same order: all wait for all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from training.vae.model import VAE
from training.vae.timeline import Timeline


def split_frames(frames: int, ranks: int, *, ratio: int = 4) -> list[slice]:
    """Which frames each of ``ranks`` ranks holds: whole latents, as evenly as can be, the first ranks the longer ones.

    Raises ValueError for a number of frames that is not 4k+1 (``ratio`` 4), and where a rank would hold none.
    """
    Timeline().check(frames, ratio=ratio)
    latents = (frames - 1) // ratio + 1
    if ranks > latents:
        raise ValueError(
            f"{frames} frames are {latents} latents: too few for {ranks} ranks, which need one each; "
            f"give at least {ratio * (ranks - 1) + 1} frames, or use at most {latents} ranks"
        )
    share, more = divmod(latents, ranks)
    stops = [share * rank + min(rank, more) for rank in range(1, ranks + 1)]
    edges = [0, *(ratio * (stop - 1) + 1 for stop in stops)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


@contextmanager
def context_parallel(vae: VAE, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Within it, ``vae`` encodes and decodes this rank's frames (latents) of a video that ``group`` holds together.

    Every rank of the group must call ``encode``, ``decode`` or ``vae(x)`` with its span of the same video. ValueError
    on all ranks if the spans are not 4k+1 frames on rank 0 and 4m (at least 4) on the others, or with ``chunks``.
    Backward may run after it. The noise of ``Gaussian.sample`` is each rank's own: give ranks different generators.
    """
    before = vae.timeline
    vae.timeline = functools.partial(SharedTimeline, group=_group(group))
    try:
        yield
    finally:
        vae.timeline = before


def gather_frames(own: Tensor, frames: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """All frames of a video of which each rank holds its span (``split_frames``): B C ``frames`` H W, no gradient."""
    group = _group(group)
    counts = [span.stop - span.start for span in split_frames(frames, group.size())]
    padded = own.new_zeros(*own.shape[:2], max(counts), *own.shape[3:])  # all must send as much
    padded[:, :, : own.shape[2]] = own.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:, :, :count] for part, count in zip(parts, counts, strict=True)], dim=2)


class SharedTimeline(Timeline):
    """A whole pass of which this rank sees its span of frames."""

    def __init__(self, before: Timeline | None = None, *, keep: bool = False, group: dist.ProcessGroup) -> None:
        if before is not None or keep:
            raise ValueError("context parallelism encodes and decodes whole videos; leave out chunks")
        super().__init__()
        self.group = group
        self.first = group.rank() == 0

    def check(self, frames: int, *, ratio: int) -> None:
        """Compare notes with the other ranks, so that all of them raise and none waits for one that did."""
        counts: list[int] = [0] * self.group.size()
        dist.all_gather_object(counts, frames, group=self.group)
        if counts[0] % ratio != 1 % ratio or any(count % ratio for count in counts[1:]) or min(counts) < 1:
            raise ValueError(
                f"the ranks hold {counts} frames; rank 0 must hold {ratio}k+1 and every other {ratio}k, at least "
                f"{ratio} (see split_frames)"
            )

    def is_image(self, x: Tensor) -> bool:
        """Never: other ranks may hold frames after a single one."""
        return False

    def past(self, conv: nn.Module, x: Tensor, *, frames: int) -> Tensor:
        """The last ``frames`` frames of the ranks before."""
        return self.extend(conv, x, frames=frames)[:, :, :frames]

    def extend(self, conv: nn.Module, x: Tensor, *, frames: int) -> Tensor:
        """Put the last ``frames`` frames of the ranks before in front of ``x``."""
        del conv
        extended: Tensor = Extend.apply(x, frames, self.group)  # type: ignore[no-untyped-call]
        return extended

    def group_norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Normalise over the frames of all ranks."""
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            x = x.float()  # as autocast does before torch's own
        normed: Tensor = SharedGroupNorm.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.bias, norm.num_groups, norm.eps, self.group
        )
        return normed


class Extend(Function):
    """(B, C, T, H, W) to (B, C, frames + T, H, W): the frames before this rank's, then its own.

    A rank that holds fewer than ``frames`` frames passes on some of those it was given, so it must wait for them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
        ctx.frames, ctx.group = frames, group
        wait = x.shape[2] < frames
        halo = x.new_empty(*x.shape[:2], frames, *x.shape[3:])
        if group.rank() == 0:
            halo.copy_(x[:, :, :1].expand_as(halo))
        elif wait:
            _exchange(group, receive=halo, sender=-1)
        extended = torch.cat([halo, x], dim=2)
        tail = extended[:, :, -frames:]
        received = None if wait else halo
        _exchange(group, receive=received, sender=-1, send=tail, receiver=1)
        if received is not None and group.rank() > 0:
            extended[:, :, :frames] = received
        return extended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        frames, group = ctx.frames, ctx.group
        grad = grad.clone()
        wait = grad.shape[2] - frames < frames
        tail_grad = torch.zeros_like(grad[:, :, :frames], memory_format=torch.contiguous_format)
        if wait:
            _exchange(group, receive=tail_grad, sender=1)
            grad[:, :, -frames:] += tail_grad
            _exchange(group, send=grad[:, :, :frames], receiver=-1)
        else:
            _exchange(group, receive=tail_grad, sender=1, send=grad[:, :, :frames], receiver=-1)
            grad[:, :, -frames:] += tail_grad
        if group.rank() == 0:  # its halo is its own first frame
            grad[:, :, frames] += grad[:, :, :frames].sum(2)
        return grad[:, :, frames:], None, None


def _exchange(
    group: dist.ProcessGroup,
    *,
    receive: Tensor | None = None,
    sender: int = 0,
    send: Tensor | None = None,
    receiver: int = 0,
) -> None:
    """Send to and receive from the ranks at these distances, where there are such ranks; ``receive`` is filled."""
    operations = []
    for function, tensor, distance in ((dist.isend, send, receiver), (dist.irecv, receive, sender)):
        peer = group.rank() + distance
        if tensor is not None and 0 <= peer < group.size():
            operations.append(dist.P2POp(function, tensor.contiguous(), group=group, group_peer=peer))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


class SharedGroupNorm(Function):
    """GroupNorm with mean and (biased) variance over all ranks' frames, computed in float32 or better.

    The ranks' means and variances are merged as Chan et al. do (1983), not by sums of squares, which lose digits. The
    gradient is that of the sum of the ranks' losses: a rank's input moves the others' outputs too.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, group: dist.ProcessGroup
    ) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide.reshape(x.shape[0], groups, -1), dim=2, correction=0)  # (B, G)
        count = torch.full_like(mean, x.numel() / mean.numel())
        counts, means, variances = _gather(torch.stack([count, mean, variance]), group)  # (ranks, B, G) each
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        rstd = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, rstd, count)
        ctx.group = group
        normed = (wide - _per_channel(mean, x)) * _per_channel(rstd, x)
        return torch.addcmul(_column(bias, x), normed, _column(weight, x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, mean, rstd, count = ctx.saved_tensors
        wide = grad.to(mean.dtype)
        normed = (x.to(mean.dtype) - _per_channel(mean, x)) * _per_channel(rstd, x)
        grad_bias, grad_weight = wide.flatten(2).sum(2), (wide * normed).flatten(2).sum(2)  # (B, C)
        through = torch.stack([grad_bias, grad_weight]) * weight  # what moves mean and variance
        through = through.unflatten(2, (mean.shape[1], -1)).sum(3)  # (2, B, G)
        dist.all_reduce(through, group=ctx.group)
        by_mean, by_variance = through / count
        grad_x = wide * _column(weight, x) - _per_channel(by_mean, x) - normed * _per_channel(by_variance, x)
        grad_x = (grad_x * _per_channel(rstd, x)).to(x.dtype)
        return grad_x, grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0).to(weight.dtype), None, None, None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(B, G) to (B, C, 1, 1, 1): each group's value for its channels."""
    return values.repeat_interleave(x.shape[1] // values.shape[1], dim=1)[:, :, None, None, None]


def _column(values: Tensor, x: Tensor) -> Tensor:
    """(C,) to (C, 1, 1, 1), in the precision of the statistics."""
    return values.to(torch.promote_types(x.dtype, torch.float32))[:, None, None, None]


def _gather(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's ``values`` along a new second axis: (3, B, G) to (3, ranks, B, G)."""
    parts = [torch.empty_like(values) for _ in range(group.size())]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts, dim=1)


def _group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    found = dist.group.WORLD if group is None else group
    if found is None:
        raise RuntimeError("context parallelism needs torch.distributed: call init_process_group, or start by torchrun")
    return found
