"""For the tests of the transformer: tiny ones of every kind, the same ones in diffusers, and how far two are apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from curation.torchvision import mend
from training.transformer.config import SIZES, TransformerConfig
from training.transformer.model import Transformer


def _tiny(name: str, **changes: Any) -> TransformerConfig:
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "in_channels": 4 * SIZES[name].in_channels // 16,
        "out_channels": 4,
        "time_embed_dim": 24,
        "ofs_embed_dim": SIZES[name].ofs_embed_dim and 24,
        "text_embed_dim": 12,
        "max_text_seq_length": 5,
        "sample_height": 8,
        "sample_width": 12,
        "sample_frames": 9,
    }
    return dataclasses.replace(SIZES[name], **(small | changes))


TINY = {name: _tiny(name) for name in SIZES if name.startswith(("2b", "5b"))}


def tiny(name: str = "5b", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Transformer:
    """A transformer with random weights, so that no term of the model is hidden by a 1 or a 0."""
    torch.manual_seed(seed)
    transformer = Transformer(TINY[name])
    with torch.no_grad():
        for parameter in transformer.parameters():
            scale = 0.3 if parameter.ndim == 1 else 1.0 / parameter[0].numel() ** 0.5
            parameter.add_(torch.randn(parameter.shape) * scale)
        if "pos_embedding" in dict(transformer.patch_embed.named_buffers()):
            places = transformer.patch_embed.pos_embedding
            places.add_(torch.randn(places.shape))
    return transformer.to(dtype)


def theirs(transformer: Transformer) -> Any:
    """diffusers' model with the same configuration and weights."""
    mend()
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(**dataclasses.asdict(transformer.config))
    model.load_state_dict(transformer.state_dict())
    return model


def their_positions(model: Any, frames: int, height: int, width: int) -> Any:
    """The rotary positions that diffusers' pipeline makes for latents of this size."""
    mend()
    from diffusers import CogVideoXPipeline

    if not model.config.use_rotary_positional_embeddings:
        return None
    pipeline = CogVideoXPipeline.__new__(CogVideoXPipeline)
    vars(pipeline).update(vae_scale_factor_spatial=8, transformer=model)
    return pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, torch.device("cpu"))


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal noise of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


def gradient_apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value, or to 0.02 where there is none: some are 0 by law."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return float((a - b).abs().max()) / max(2e-2, float(b.abs().max()))


def gradients(transformer: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients that there are, by name; they are taken away from the model."""
    found = {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    return found
