"""Shards, models and a config so small that a whole training of the transformer takes seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.data.made import sample, write_tar
from tests.training.transformer_helpers import tiny
from training.transformer.diffusion import Diffusion
from training.vae.config import VAEConfig
from training.vae.model import VAE

TINY_VAE = VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4)

CONFIG = """\
data:
  shards: SHARDS
  buckets:
    - {frames: 17, height: 16, width: 32, batch_size: 2}
    - {frames: 5, height: 16, width: 32, batch_size: 4}
  images: 0.3
  held_out: 0.2
  min_pixels: 0.01
  workers: 0
model: {start: START/transformer}
vae: {start: START/vae, scaling: measure}
text: {start: words, precision: fp32}
diffusion: {snr_shift_scale: 1.0}
packing: {tokens: 60}
judge: {samples: 4, timesteps: 4, shown: 1, steps: 2}
optimiser: {learning_rate: 1.0e-3, warmup_steps: 2, schedule: constant}
training: {steps: 8, precision: fp32, ema: 0.9, log_every: 1, judge_every: 4, checkpoint_every: 4}
"""


def write_shards(folder: Path, *, captions: dict[int, str] | None = None) -> Path:
    """Twelve clips of twelve videos in two shards: eight of 20 frames, four of 9."""
    for shard in range(2):
        samples = []
        for number in range(6 * shard, 6 * shard + 6):
            key, parts = sample(number, 20 if number % 3 else 9, video_id=f"v{number}")
            text = (captions or {}).get(number, f"film {number} of a field")
            samples.append((key, {**parts, "txt": text.encode()}))
        write_tar(folder / f"{shard}.tar", samples)
    return folder


def write_models(folder: Path, kind: str = "5b", *, seed: int = 0) -> Path:
    """A tiny VAE and a tiny transformer."""
    torch.manual_seed(seed)
    VAE(TINY_VAE).save_pretrained(folder / "vae")
    tiny(kind).save_pretrained(folder / "transformer")
    Diffusion(snr_shift_scale=1.0).save_pretrained(folder / "scheduler")
    return folder


def write_config(path: Path, shards: Path, start: Path) -> Path:
    """The config, with its shards and models."""
    path.write_text(CONFIG.replace("SHARDS", str(shards)).replace("START", str(start)))
    return path


def weights(folder: Path) -> dict[str, Tensor]:
    """What was trained."""
    return load_file(folder / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def quiet(text: str) -> None:
    """Say nothing."""
    del text
