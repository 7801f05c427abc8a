"""The layers of the 3D causal VAE: convolution, norms, residual block, down and up.

Shapes are (B, C, T, H, W): batch, channels, frames, height, width. Parameters are named as in diffusers'
``AutoencoderKLCogVideoX`` and results are equal to its, where its are defined. The architecture is that of CogVideoX
(arXiv 2408.06072, section 2.1), after MAGVIT-v2 (arXiv 2310.05737) and, for the decoder's norms, MoVQ (arXiv
2209.09002). Where we compute in another order, which changes rounding only, a comment says so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.vae.timeline import Timeline

EPS = 1e-6  # of the norms that diffusers does not give ``norm_eps``


class CausalConv3d(nn.Module):
    """A convolution over time, height and width that sees no later frame."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.past = kernel - 1
        side = kernel // 2
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=(0, side, side))

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        if self.past:
            x = timeline.extend(self, x, frames=self.past)
        out: Tensor = self.conv(x)
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
        scale = resize(self.conv_y(z, timeline), x, first=timeline.first)
        shift = resize(self.conv_b(z, timeline), x, first=timeline.first)
        return torch.addcmul(shift, self.norm_layer(x, timeline), scale)


def resize(z: Tensor, x: Tensor, *, first: bool) -> Tensor:
    """Repeat ``z`` in time, height and width to the size of ``x``; with ``first`` its first frame stays one frame."""
    if z.shape[2:] == x.shape[2:]:
        return z
    if not first or x.shape[2] == 1:
        return functional.interpolate(z, size=x.shape[2:])
    head = functional.interpolate(z[:, :, :1], size=(1, *x.shape[3:]))
    rest = functional.interpolate(z[:, :, 1:], size=(x.shape[2] - 1, *x.shape[3:]))
    return torch.cat([head, rest], dim=2)


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
        h = functional.silu(self.norm1(x, *condition, timeline))
        h = self.conv1(h, timeline)
        h = functional.silu(self.norm2(h, *condition, timeline))
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
        x = per_frame(nn.Sequential(nn.Upsample(scale_factor=2), self.conv), x)
        if self.time:
            head, rest = x[:, :, : timeline.first], x[:, :, timeline.first :]
            x = torch.cat([head, rest.repeat_interleave(2, dim=2)], dim=2)
        return x


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer for pictures to every frame."""
    batch = x.shape[0]
    pictures = x.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
    out: Tensor = layer(pictures).unflatten(0, (batch, -1)).transpose(1, 2)
    return out
