"""The discriminator of the VAE's adversarial loss: real or reconstructed, for patches of space and time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

_LEAK = 0.2


class Discriminator(nn.Module):
    """A 3D PatchGAN: one logit per patch. Takes images (one frame) as well as videos.

    After Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", in three dimensions.
    GroupNorm stands where BatchNorm does there: batches of videos are too small for statistics over them, and no
    sample must change the verdict on another.

    Args:
        width: channels after the first layer.
        depth: layers that halve height and width; the first ``time_depth`` of them halve time too.
    """

    def __init__(self, *, width: int = 64, depth: int = 3, time_depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Conv(3, width, halve_time=time_depth > 0), nn.LeakyReLU(_LEAK)]
        for i in range(1, depth):
            narrow, wide = width * min(2 ** (i - 1), 8), width * min(2**i, 8)
            layers += [_Conv(narrow, wide, halve_time=i < time_depth), nn.GroupNorm(8, wide), nn.LeakyReLU(_LEAK)]
        self.layers = nn.Sequential(*layers)
        self.verdict = nn.Conv3d(width * min(2 ** (depth - 1), 8), 1, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in -1..1 to logits (B, 1, t, h, w)."""
        verdict: Tensor = self.verdict(self.layers(video))
        return verdict


class _Conv(nn.Module):
    """A convolution that halves height and width, and time where asked; frames at both ends are repeated."""

    def __init__(self, inward: int, outward: int, *, halve_time: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inward, outward, (3, 4, 4), stride=(2 if halve_time else 1, 2, 2), padding=(0, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        convolved: Tensor = self.conv(pad(video, (0, 0, 0, 0, 1, 1), mode="replicate"))
        return convolved


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator learns: real patches above 1, reconstructed ones below -1."""
    return 0.5 * (relu(1 - real.float()).mean() + relu(1 + fake.float()).mean())


def fooling_loss(fake: Tensor) -> Tensor:
    """What the generator learns: its patches are taken for real."""
    return -fake.float().mean()


def gradient_penalty(judge: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """R1: the squared gradient of the verdict on real videos (Mescheder et al. 2018), a mean over the batch."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(real).float().sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3, 4)).mean()
