"""Latents to tokens and back, and the latent frames that CogVideoX 1.5 needs to fill its patches of two."""

from __future__ import annotations

import torch
from torch import Tensor

from training.transformer.config import TransformerConfig
from training.transformer.positions import Grid


def grid_of(config: TransformerConfig, latents: Tensor) -> Grid:
    """The patches of ``latents`` (..., T, C, H, W) in time, height and width.

    Raises ValueError where patches do not fill the latents, or the channels are those of another model.
    """
    frames, channels, height, width = latents.shape[-4:]
    space, time = config.patch_size, config.time_patch
    if channels != config.in_channels:
        raise ValueError(f"the transformer takes latents of {config.in_channels} channels, not {channels}")
    if min(frames, height, width) < 1 or height % space or width % space:
        raise ValueError(f"latents of {height}x{width} are not filled by patches of {space}x{space}")
    if frames % time:
        raise ValueError(f"{frames} latent frames are not filled by patches of {time}; see patches.fill_front")
    return frames // time, height // space, width // space


def patchify(config: TransformerConfig, latents: Tensor) -> Tensor:
    """(B, T, C, H, W) to the numbers of each token: (B, tokens, C * patch), in the order channel, time, row, column."""
    frames, height, width = grid_of(config, latents)
    space, time = config.patch_size, config.time_patch
    batch = (len(latents), frames, time, config.in_channels, height, space, width, space)
    x = latents.reshape(batch)
    return x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)


def unpatchify(config: TransformerConfig, tokens: Tensor, grid: Grid) -> Tensor:
    """Undo ``patchify`` for the output: (B, tokens, out_channels * patch) to (B, T, out_channels, H, W)."""
    space, time = config.patch_size, config.time_patch
    x = tokens.reshape(len(tokens), *grid, config.out_channels, time, space, space)
    return x.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(1, 2)


def fill_front(config: TransformerConfig, latents: Tensor) -> tuple[Tensor, int]:
    """Repeat the first frame of ``latents`` (B, T, C, H, W) in front until patches are filled, and say how often.

    The same number of frames is to be dropped from the front of what is made, in training and in sampling alike.
    Nothing is added in CogVideoX 1.0. Source: the repository's finetuning code for 1.5, and its pipelines.
    """
    added = -latents.shape[1] % config.time_patch
    return torch.cat([latents[:, :1]] * added + [latents], dim=1) if added else latents, added
