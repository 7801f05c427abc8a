"""The parts of making a sample, each for models that may lie on devices of their own; ``extend.make`` joins them.

With the same weights, embeddings and seed, videos are those of diffusers' ``CogVideoXPipeline`` and
``CogVideoXImageToVideoPipeline`` in fp32. In bf16 we differ: latents and noise stay fp32 between the steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from curation.errors import UsageError
from training.transformer.config import TransformerConfig
from training.transformer.diffusion import Diffusion
from training.transformer.model import Transformer
from training.transformer.patches import fill_front
from training.transformer.solvers import guidance, solver
from training.vae.config import Chunks, Tiles, VAEConfig

if TYPE_CHECKING:
    from training.vae.model import VAE


_CHUNKS = Chunks()  # as CogVideoX was published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a sample is made.

    Attributes:
        steps: passes of the transformer.
        solver: ``dpm`` (what CogVideoX recommends for 5b) or ``ddim`` (for 2b).
        guidance: how far to go beyond the text's prediction, away from that without text; 1 is no further.
        course: how guidance runs over the steps; see ``solvers.GUIDANCE``.
    """

    steps: int = 50
    solver: str = "dpm"
    guidance: float = 6.0
    course: str = "constant"


# A scaling factor is applied in these three functions and nowhere else. Latents (B, C, T, H, W) of the VAE have none.


def scaled(z: Tensor, config: VAEConfig) -> Tensor:
    """Latents of the VAE (B, C, T, H, W) to those that the transformer reads (B, T, C, H, W)."""
    return (z * config.scaling_factor).transpose(1, 2)


def unscaled(latents: Tensor, config: VAEConfig) -> Tensor:
    """Undo ``scaled``."""
    return (latents / config.scaling_factor).transpose(1, 2)


def scaled_image(z: Tensor, config: VAEConfig) -> Tensor:
    """As ``scaled``, for the first frame of image-to-video: CogVideoX 1.5 was trained with that one **divided**."""
    factor = 1 / config.scaling_factor if config.invert_scale_latents else config.scaling_factor
    return (z * factor).transpose(1, 2)


class Draws:
    """Normal noise for each sample from a seed of its own: the company in a batch does not change a sample."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, *shape: int, device: torch.device) -> Tensor:
        """(B, *shape), drawn in fp32 on the CPU, so that every device gets the same."""
        return torch.cat([torch.randn(1, *shape, generator=one) for one in self.generators]).to(device)


def check_size(config: TransformerConfig, vae: VAEConfig, *, frames: int, height: int, width: int) -> None:
    """Raise UsageError, with the nearest possible size, for one that cannot be made; before any work."""
    side = vae.space_ratio * config.patch_size
    if frames < 1 or (frames - 1) % vae.time_ratio:
        near = max(0, round((frames - 1) / vae.time_ratio)) * vae.time_ratio + 1
        raise UsageError(f"{frames} frames are not {vae.time_ratio}k+1; {near} are")
    if min(height, width) < side or height % side or width % side:
        near_sides = [max(1, round(pixels / side)) * side for pixels in (height, width)]
        raise UsageError(f"{height}x{width} is not made of {side}x{side}; {near_sides[0]}x{near_sides[1]} is")


def image_latents(vae: VAE, image: Tensor, draws: Draws) -> Tensor:
    """The first frame (B, 3, H, W) in -1..1 as the transformer reads it: (B, 1, C, h, w)."""
    weight = _weight(vae)
    posterior = vae.encode(image[:, :, None].to(weight.device, weight.dtype))
    parts = [
        type(posterior)(posterior.mean[i : i + 1], posterior.logvar[i : i + 1]).sample(generator)
        for i, generator in enumerate(draws.generators)
    ]
    return scaled_image(torch.cat(parts), vae.config).float()


@torch.no_grad()
def denoise(
    transformer: Transformer,
    text: Tensor,
    *,
    shape: tuple[int, int, int],
    diffusion: Diffusion,
    draws: Draws,
    settings: Sampling,
    negative: Tensor | None = None,
    first: Tensor | None = None,
    given: Tensor | None = None,
    clean: Tensor | None = None,
    each: Callable[[int, Tensor], None] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Latents (B, T, C, H, W) of ``shape`` (T, H, W), scaled, in fp32, from noise.

    Args:
        first: (B, 1, C, H, W) from ``image_latents``, for image-to-video.
        given: (B, T, C, H, W), read where ``clean``, bool (B, T): frames that stay exactly as they are, for a
            transformer that was trained with such (to extend, to loop, to fill between).
        negative: embeddings to go away from, instead of those of no text (zeros).
        each: called after each step with its index and the latents (B, T, C, H, W).
        device: on which the transformer computes, where its weights lie elsewhere meanwhile.
    """
    config, weight = transformer.config, _weight(transformer)
    device = device or weight.device
    frames, height, width = shape
    added = -frames % config.time_patch
    steps, course = solver(settings.solver, diffusion, settings.steps), guidance(settings.course)
    guided = settings.guidance > (1.0 if settings.course == "constant" else 0.0)
    text = text.to(device, weight.dtype)
    if guided:
        text = torch.cat([torch.zeros_like(text) if negative is None else negative.to(text), text])
    per_sample = (frames + added, config.out_channels, height, width)
    x = draws(*per_sample, device=device)
    if given is not None and clean is not None:
        given, _ = fill_front(config, given.to(x))
        clean = torch.cat([clean[:, :1]] * added + [clean], dim=1).to(x.device)
    elif given is not None or clean is not None:
        raise ValueError("given frames and clean, which says which they are, come together")
    picture = None
    if first is not None:  # The place of the first frame is the one that filling adds, where it adds one.
        picture = torch.cat([first.to(x), x.new_zeros(len(x), frames + added - 1, *per_sample[1:])], dim=1)
    for index, t in enumerate(steps.timesteps):
        x = _with_given(x, given, clean)
        inputs = x if picture is None else torch.cat([x, picture], dim=2)
        inputs, mask = _twice(inputs, guided).to(weight.dtype), None if clean is None else _twice(clean, guided)
        times = torch.full((len(inputs),), t, device=x.device)
        v = transformer(inputs, text, times, clean=mask).float()
        if guided:
            without, towards = v.chunk(2)
            v = without + course(settings.guidance, index=index, steps=settings.steps, t=t) * (towards - without)
        x = steps.step(index, v, x, lambda: draws(*per_sample, device=device))
        if each is not None:
            each(index, x[:, added:])
    return _with_given(x, given, clean)[:, added:]


def _with_given(x: Tensor, given: Tensor | None, clean: Tensor | None) -> Tensor:
    return x if given is None or clean is None else torch.where(clean[:, :, None, None, None], given, x)


def _twice(x: Tensor, guided: bool) -> Tensor:
    return torch.cat([x, x]) if guided else x


@torch.no_grad()
def decode(vae: VAE, latents: Tensor, *, chunks: Chunks | None = _CHUNKS, tiles: Tiles | None = None) -> Tensor:
    """Latents (B, T, C, H, W), scaled, to videos (B, 3, 4T-3, 8H, 8W) in -1..1, fp32."""
    weight = _weight(vae)
    z = unscaled(latents, vae.config).to(weight.device, weight.dtype)
    return vae.decode(z, chunks=chunks, tiles=tiles).float().clamp(-1.0, 1.0)


def _weight(module: nn.Module) -> Tensor:
    return next(module.parameters())
