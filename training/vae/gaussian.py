"""What the encoder says of a latent: a Gaussian with a mean and a variance for each value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """A diagonal Gaussian over latents (B, C, T, H, W); ``logvar`` is the logarithm of the variance.

    A tuple, so that FSDP and other hooks see the tensors in it.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> Gaussian:
        """From the encoder's output (B, 2C, T, H, W); the log variance is held to -30..20, as in diffusers."""
        mean, logvar = parameters.chunk(2, dim=1)
        return cls(mean.clone(), logvar.clamp(-30.0, 20.0))  # no view: FSDP cannot hook one safely

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one latent for each of the batch; the noise is drawn on the generator's device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over each sample: (B,).

        diffusers sums over three of the four axes (its formula is for pictures) and so returns (B, W).
        """
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)
