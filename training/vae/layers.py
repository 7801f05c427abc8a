"""The layers of the 3D causal VAE: convolution, norms, residual block, down and up.

Shapes are (B, C, T, H, W): batch, channels, frames, height, width. Parameters are named as in diffusers'
``AutoencoderKLCogVideoX`` and results are equal to its, where its are defined. The architecture is that of CogVideoX
(arXiv 2408.06072, section 2.1), after MAGVIT-v2 (arXiv 2310.05737) and, for the decoder's norms, MoVQ (arXiv
2209.09002). Where we compute in another order, which changes rounding only, a comment says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.vae.timeline import Timeline

EPS = 1e-6  # of the norms that diffusers does not give ``norm_eps``
PIECE = 2**27  # values that enter a convolution at a time where no gradient is wanted: 512 MiB of float32


class CausalConv3d(nn.Module):
    """A convolution over time, height and width that sees no later frame."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.past = kernel - 1
        side = kernel // 2
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=(0, side, side))

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        if self.past and timeline.is_image(x) and self.conv.weight.dtype.itemsize >= 4:
            # What is before an image is the image again, so the kernel's frames add up: a third of the work. Not in
            # half precision, where the sum would be rounded.
            side = self.past // 2
            picture = functional.conv2d(x[:, :, 0], self.conv.weight.sum(2), self.conv.bias, padding=side)
            return picture[:, :, None]
        if not self.past or torch.is_grad_enabled():
            out: Tensor = self.conv(timeline.extend(self, x, frames=self.past) if self.past else x)
            return out
        return self._in_pieces(x, timeline.past(self, x, frames=self.past))

    def _in_pieces(self, x: Tensor, past: Tensor) -> Tensor:
        """Some frames at a time, so that a large video is not copied whole to put a few frames before it."""
        step = max(1, PIECE // x[:, :, 0].numel())
        out: Tensor | None = None
        for start in range(0, x.shape[2], step):
            stop = min(start + step, x.shape[2])
            if start < self.past:
                window = torch.cat([past[:, :, start:], x[:, :, :stop]], dim=2)
            else:
                window = x[:, :, start - self.past : stop]
            piece = self.conv(window)
            if out is None:
                if stop == x.shape[2]:
                    return piece
                out = piece.new_empty(*piece.shape[:2], x.shape[2], *piece.shape[3:])
            out[:, :, start:stop] = piece
        assert out is not None
        return out


class GroupNorm(nn.GroupNorm):
    """GroupNorm over all frames that the timeline knows of."""

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:  # type: ignore[override]
        return timeline.group_norm(self, x)


class SpatialNorm(nn.Module):
    """GroupNorm, scaled and shifted by what two 1x1x1 convolutions make of the latent at the same place.

    The latent is resized to the features (nearest, the first frame apart). We convolve before we resize: the values
    are the same, for 1/256 of the work in the last block.
    """

    def __init__(self, channels: int, latent_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm_layer = GroupNorm(groups, channels, eps=EPS)
        self.conv_y = CausalConv3d(latent_channels, channels, kernel=1)
        self.conv_b = CausalConv3d(latent_channels, channels, kernel=1)

    def forward(self, x: Tensor, z: Tensor, timeline: Timeline) -> Tensor:
        scale, shift = self.conv_y(z, timeline), self.conv_b(z, timeline)
        x = self.norm_layer(x, timeline)
        if torch.is_grad_enabled():
            return torch.addcmul(resize(shift, x, first=timeline.first), x, resize(scale, x, first=timeline.first))
        # In place and latent by latent: this is where decoding needs the most memory.
        for index, frames in enumerate(frames_of_latents(z.shape[2], x.shape[2], first=timeline.first)):
            x[:, :, frames].mul_(enlarge(scale[:, :, index : index + 1], x))
            x[:, :, frames].add_(enlarge(shift[:, :, index : index + 1], x))
        return x


def enlarge(z: Tensor, x: Tensor) -> Tensor:
    """Repeat the values of ``z`` in height and width to the size of ``x``."""
    # The backward pass of this is twice as fast on a CPU as that of interpolate.
    height, width = x.shape[3] // z.shape[3], x.shape[4] // z.shape[4]
    return z.repeat_interleave(width, dim=4).repeat_interleave(height, dim=3) if height * width > 1 else z


def frames_of_latents(latents: int, frames: int, *, first: bool) -> list[slice]:
    """Which of ``frames`` each latent stands for: an equal number, but one for the first when ``first``."""
    each = (frames - first) // max(latents - first, 1)
    edges = [index * each + first for index in range(latents - first + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise([0] * first + edges)]


def resize(z: Tensor, x: Tensor, *, first: bool) -> Tensor:
    """Repeat ``z`` in time, height and width to the size of ``x``; with ``first`` its first frame stays one frame."""
    z = enlarge(z, x)
    if z.shape[2] == x.shape[2]:
        return z
    each = (x.shape[2] - first) // (z.shape[2] - first)
    return torch.cat([z[:, :, :first], z[:, :, first:].repeat_interleave(each, dim=2)], dim=2)


def silu(x: Tensor) -> Tensor:
    """SiLU of what nobody else reads, so in place where no gradient is wanted."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut. With ``latent_channels`` its norms are spatial ones."""

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, eps: float, latent_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups, eps, latent_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = _norm(out_channels, groups, eps, latent_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        if in_channels != out_channels:
            self.conv_shortcut: nn.Module = nn.Conv3d(in_channels, out_channels, 1)
        else:
            self.conv_shortcut = nn.Identity()

    def forward(self, x: Tensor, timeline: Timeline, z: Tensor | None = None) -> Tensor:
        condition = () if z is None else (z,)
        h = silu(self.norm1(x, *condition, timeline))
        h = self.conv1(h, timeline)
        h = silu(self.norm2(h, *condition, timeline))
        h = self.conv2(h, timeline)
        out: Tensor = h + self.conv_shortcut(x)
        return out


def _norm(channels: int, groups: int, eps: float, latent_channels: int | None) -> nn.Module:
    if latent_channels is None:
        return GroupNorm(groups, channels, eps=eps)
    return SpatialNorm(channels, latent_channels, groups=groups)


class Downsample(nn.Module):
    """Halve height and width (odd ones rounded down), and with ``time`` the frames, the first of them apart."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        if self.time:
            head, rest = x[:, :, : timeline.first], x[:, :, timeline.first :]
            x = torch.cat([head, (rest[:, :, 0::2] + rest[:, :, 1::2]) / 2], dim=2)
        return per_frame(self.conv, functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width, and with ``time`` the frames, the first of them apart.

    The convolution sees single frames, so we run it before a frame is doubled: the same values, for half the work.
    """

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        x = per_frame(lambda pictures: self.conv(functional.interpolate(pictures, scale_factor=2.0)), x)
        if self.time:
            head, rest = x[:, :, : timeline.first], x[:, :, timeline.first :]
            x = torch.cat([head, rest.repeat_interleave(2, dim=2)], dim=2)
        return x


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer for pictures to every frame."""
    batch = x.shape[0]
    pictures = x.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
    out = layer(pictures)  # (B * T, C, h, w)
    return out.view(batch, -1, *out.shape[1:]).transpose(1, 2)
