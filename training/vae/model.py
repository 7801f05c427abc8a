"""The 3D causal VAE of CogVideoX: pictures and videos to latents of 1/4 the frames and 1/8 the size, and back.

    vae = VAE(size("debug"))                      # or VAE.from_pretrained(folder), a published one
    posterior = vae.encode(video)                 # (B, 3, 4k+1, H, W) in -1..1 -> Gaussian over (B, C, k+1, H/8, W/8)
    video = vae.decode(posterior.sample())        # (B, 3, 4k+1, H, W)

Names of parameters and configuration are those of diffusers' ``AutoencoderKLCogVideoX``. Results are equal, too, where
diffusers' are defined: it takes an even number of latents for one without a first frame and returns 8 frames for the
2 latents of 5. Here 4k+1 frames always come back as 4k+1 frames.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from training import weights
from training.recompute import recompute
from training.vae.config import Chunks, Tiles, VAEConfig, spans
from training.vae.gaussian import Gaussian
from training.vae.layers import EPS, CausalConv3d, Downsample, GroupNorm, ResnetBlock, SpatialNorm, Upsample, silu
from training.vae.tiling import tiled_decode, tiled_encode
from training.vae.timeline import Timeline


class Block(nn.Module):
    """Residual blocks, then perhaps a change of size. With ``latent_channels`` the blocks read the latent."""

    def __init__(
        self, config: VAEConfig, in_channels: int, out_channels: int, *, layers: int, latent_channels: int | None = None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock(
                before, after, groups=config.norm_num_groups, eps=config.norm_eps, latent_channels=latent_channels
            )
            for before, after in itertools.pairwise(widths)
        )
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def forward(self, x: Tensor, timeline: Timeline, z: Tensor | None = None) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, timeline, z)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x, timeline)
        return x


class Encoder(nn.Module):
    """(B, in_channels, T, H, W) to the means and log variances of latents (B, 2 * latent_channels, t, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        self.down_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(itertools.pairwise((widths[0], *widths))):
            block = Block(config, before, after, layers=config.layers_per_block)
            if level < len(widths) - 1:
                block.downsamplers.append(Downsample(after, time=level < config.time_levels))
            self.down_blocks.append(block)
        self.mid_block = Block(config, widths[-1], widths[-1], layers=2)
        self.norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        x = self.conv_in(x, timeline)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x, timeline)
        x = silu(self.norm_out(x, timeline))
        out: Tensor = self.conv_out(x, timeline)
        return out


class Decoder(nn.Module):
    """Latents (B, latent_channels, t, h, w) to pictures (B, out_channels, T, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, latent = config.block_out_channels[::-1], config.latent_channels
        self.conv_in = CausalConv3d(latent, widths[0])
        self.mid_block = Block(config, widths[0], widths[0], layers=2, latent_channels=latent)
        self.up_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(itertools.pairwise((widths[0], *widths))):
            block = Block(config, before, after, layers=config.layers_per_block + 1, latent_channels=latent)
            if level < len(widths) - 1:
                block.upsamplers.append(Upsample(after, time=level < config.time_levels))
            self.up_blocks.append(block)
        self.norm_out = SpatialNorm(widths[-1], latent, groups=config.norm_num_groups)
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)

    def forward(self, z: Tensor, timeline: Timeline) -> Tensor:
        x = self.conv_in(z, timeline)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, timeline, z)
        x = silu(self.norm_out(x, z, timeline))
        out: Tensor = self.conv_out(x, timeline)
        return out


PART = "vae"


class VAE(nn.Module):
    """The 3D causal VAE. Latents leave ``encode`` and enter ``decode`` unscaled: ``scaling_factor`` is the caller's."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.timeline: Callable[..., Timeline] = Timeline  # another one under context_parallel

    def forward(self, x: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Gaussian]:
        """There and back in one call, which is what FSDP2 and torch.compile hook into: reconstruction, and Gaussian.

        ``x`` is (B, 3, 4k+1, H, W) in -1..1, H and W multiples of 8; the reconstruction has its shape. ``noise`` is
        standard normal in the latent's shape; without it the reconstruction is that of the mean.
        """
        posterior = self.encode(x)
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.decode(latent), posterior

    def encode(self, x: Tensor, *, chunks: Chunks | None = None, tiles: Tiles | None = None) -> Gaussian:
        """Encode pictures (T = 1) or videos ``x`` (B, 3, T, H, W) in -1..1: a Gaussian over ``latent_shape(T, H, W)``.

        Whole by default, in time and in space. ``chunks`` and ``tiles`` bound the memory; both change the result
        (see ``Chunks`` and ``Tiles``), and ``Chunks()`` with ``Tiles()`` is what diffusers gives. Heights and widths
        that are no multiples of 8 are rounded down, as in diffusers.

        Raises ValueError for a number of frames that is not 4k+1, and for pictures smaller than 8x8.
        """
        ratio = self.config.time_ratio
        height, width = x.shape[3:]
        if min(height, width) < self.config.space_ratio:
            raise ValueError(
                f"the VAE takes pictures from {self.config.space_ratio} pixels a side, not {height}x{width}"
            )
        if chunks is not None and chunks.frames % ratio:
            raise ValueError(f"a chunk of {chunks.frames} frames does not fill latents of {ratio}; give a multiple")
        encode = functools.partial(self._run, self.encoder, size=chunks.frames if chunks else None, ratio=ratio)
        if tiles is None or (height <= tiles.height and width <= tiles.width):
            return Gaussian.of(encode(x))
        return Gaussian.of(tiled_encode(encode, x, tiles=tiles, ratio=self.config.space_ratio))

    def decode(self, z: Tensor, *, chunks: Chunks | None = None, tiles: Tiles | None = None) -> Tensor:
        """Decode latents ``z`` (B, C, t, h, w), unscaled, to (B, 3, 4t-3, 8h, 8w), about -1..1 (not clamped)."""
        ratio = self.config.space_ratio
        decode = functools.partial(self._run, self.decoder, size=chunks.latents if chunks else None, ratio=1)
        if tiles is None or (z.shape[3] * ratio <= tiles.height and z.shape[4] * ratio <= tiles.width):
            return decode(z)
        return tiled_decode(decode, z, tiles=tiles, ratio=ratio)

    def _run(self, part: nn.Module, x: Tensor, *, size: int | None, ratio: int) -> Tensor:
        """Pass ``x`` through encoder or decoder, ``size`` frames or latents at a time."""
        outs: list[Tensor] = []
        timeline: Timeline | None = None
        for start, stop in spans(x.shape[2], size):
            timeline = self.timeline(timeline, keep=stop < x.shape[2])
            if start == 0:
                timeline.check(x.shape[2], ratio=ratio)
            outs.append(part(x[:, :, start:stop], timeline))
        return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the latent of a video; ValueError unless ``frames`` is 4k+1."""
        Timeline().check(frames, ratio=self.config.time_ratio)
        ratio = self.config.space_ratio
        return self.config.latent_channels, (frames - 1) // self.config.time_ratio + 1, height // ratio, width // ratio

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> VAE:
        """Load a folder that this or diffusers' ``save_pretrained`` wrote, or the one of a whole pipeline.

        Reads ``config.json`` and safetensors (also in shards). Raises UsageError with the folder, what is missing in
        it and what to do.
        """
        folder = weights.find(folder, part=PART)
        config = weights.read_config(folder, VAEConfig.from_mapping, part=PART)
        with torch.device("meta"):  # nothing is filled in that is to be overwritten
            vae = cls(config)
        state = weights.read_weights(folder, dtype=dtype)
        weights.check_names(folder, wanted=vae.state_dict(), found=state)
        vae.load_state_dict(state, assign=True)
        return vae.eval()

    def save_pretrained(self, folder: str | Path, *, state: Mapping[str, Tensor] | None = None) -> None:
        """Write ``config.json`` and the weights (or ``state``, such as their moving average) for this and diffusers."""
        weights.write(folder, config=self.config.to_json(), state=self.state_dict() if state is None else state)


def blocks(vae: VAE) -> list[ResnetBlock]:
    """The residual blocks in the order in which they run: the unit to checkpoint, to shard (FSDP2) and to compile."""
    return [module for module in vae.modules() if isinstance(module, ResnetBlock)]


def checkpoint_blocks(vae: VAE) -> None:
    """Keep no activations within blocks; see ``recompute``."""
    recompute(blocks(vae))
