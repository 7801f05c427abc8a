"""The debug size learns within seconds what its texts say, from batches and packs in turn."""

from __future__ import annotations

import pytest
import torch

from training.transformer.config import size
from training.transformer.diffusion import Diffusion, losses, timesteps
from training.transformer.model import Transformer
from training.transformer.sampling import Draws, Sampling, denoise


@pytest.mark.slow
def test_samples_are_what_the_text_asks_for() -> None:
    torch.manual_seed(0)
    transformer, diffusion = Transformer(size("debug")), Diffusion(snr_shift_scale=1.0)
    kinds, texts = torch.randn(8, 1, 16, 1, 1), torch.randn(8, 4, 128)  # each text stands for one colour of latents
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=2e-3)
    first = last = 0.0
    for step in range(120):
        which = torch.randint(0, 8, (16,))
        latents = kinds[which].expand(16, 1, 16, 4, 4) + 0.1 * torch.randn(16, 1, 16, 4, 4)
        t = timesteps(seed=0, step=step, total=16, indices=range(16))
        noise, words = torch.randn(latents.shape), texts[which] * (torch.rand(16, 1, 1) > 0.1)
        noisy, velocity = diffusion.noised(latents, noise, t), diffusion.velocity(latents, noise, t)
        if step % 2:
            loss = losses(transformer(noisy, words, t), velocity).mean()
        else:
            loss = losses(transformer(list(noisy), list(words), t), list(velocity)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        last = loss.item()
        first = first or last
    assert last < first / 2
    settings = Sampling(steps=12, guidance=2.0)
    made = denoise(
        transformer.eval(), texts, shape=(1, 4, 4), diffusion=diffusion, draws=Draws(range(8)), settings=settings
    )
    nearest = torch.cdist(made.mean((1, 3, 4)), kinds.flatten(1)).argmin(1)
    assert (nearest == torch.arange(8)).float().mean() >= 7 / 8  # 1/8 by chance
