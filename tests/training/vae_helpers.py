"""For the tests of the VAE: a tiny one, the same one in diffusers, and how far two results are apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from curation.torchvision import mend
from training.vae.config import VAEConfig
from training.vae.model import VAE

TINY = VAEConfig(block_out_channels=(4, 8, 8, 16), latent_channels=3, layers_per_block=1, norm_num_groups=2)


def tiny(seed: int = 0, *, config: VAEConfig = TINY) -> VAE:
    """A VAE with random weights, norms included, so that no term of the model is hidden by a 1 or a 0."""
    torch.manual_seed(seed)
    vae = VAE(config)
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return vae


def theirs(vae: VAE) -> Any:
    """diffusers' model with the same configuration and weights."""
    mend()
    from diffusers import AutoencoderKLCogVideoX

    model = AutoencoderKLCogVideoX(**dataclasses.asdict(vae.config))
    model.load_state_dict(vae.state_dict())
    return model


def video(*shape: int, seed: int = 1) -> torch.Tensor:
    """Noise in -1..1 of this shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 2 - 1


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))
