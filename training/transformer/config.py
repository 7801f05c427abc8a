"""What a transformer is built from (the diffusers config.json), and its named sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from curation.errors import UsageError, nearest
from training.weights import known_fields

CLASS_NAME = "CogVideoXTransformer3DModel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The fields of the ``config.json`` of diffusers' ``CogVideoXTransformer3DModel``, with its defaults: size ``2b``.

    ``sample_frames``, ``sample_height`` and ``sample_width`` (the latter two in latents) are the size that the model
    was trained on. With rotary positions other sizes are scaled to it; learned positions exist at this size only.
    ``patch_size_t`` None is CogVideoX 1.0 (flat patches), 2 is 1.5. ``in_channels`` is twice ``out_channels`` in
    image-to-video: the noisy latent, then the latent of the first frame. ``patch_bias`` holds for flat patches, as in
    diffusers.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None
    text_embed_dim: int = 4096
    num_layers: int = 30
    dropout: float = 0.0
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    activation_fn: str = "gelu-approximate"
    timestep_activation_fn: str = "silu"
    norm_elementwise_affine: bool = True
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    patch_bias: bool = True

    def __post_init__(self) -> None:
        if self.activation_fn != "gelu-approximate" or self.timestep_activation_fn != "silu":
            raise UsageError(
                f"activation_fn {self.activation_fn!r} with timestep_activation_fn {self.timestep_activation_fn!r} is "
                "not built; every published CogVideoX has 'gelu-approximate' and 'silu'"
            )
        if self.dropout:
            raise UsageError(f"dropout {self.dropout} is not built; every published CogVideoX has 0.0")
        if self.use_learned_positional_embeddings and not self.use_rotary_positional_embeddings:
            raise UsageError(
                "use_learned_positional_embeddings needs use_rotary_positional_embeddings: the published model with "
                "learned positions (5b image-to-video) has both"
            )
        if self.use_rotary_positional_embeddings and self.attention_head_dim % 16:
            raise UsageError(
                f"attention_head_dim {self.attention_head_dim} cannot be shared between time (1/4), height and width "
                "(3/8 each) in pairs; rotary positions need a multiple of 16"
            )
        if self.width % 16:
            raise UsageError(
                f"num_attention_heads {self.num_attention_heads} times attention_head_dim {self.attention_head_dim} "
                f"gives {self.width} channels; positions need a multiple of 16"
            )
        if self.ofs_embed_dim not in (None, self.time_embed_dim):
            raise UsageError(
                f"ofs_embed_dim {self.ofs_embed_dim} is added to the time embedding: "
                f"it must be time_embed_dim {self.time_embed_dim}, or null"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def reads_image(self) -> bool:
        """Whether it continues a picture: latents of the first frame are further input channels."""
        return self.in_channels != self.out_channels

    @property
    def time_patch(self) -> int:
        """Latent frames in a token."""
        return self.patch_size_t or 1

    @property
    def patch_channels(self) -> int:
        """Numbers of one input channel in a token."""
        return self.time_patch * self.patch_size**2

    @property
    def sample_grid(self) -> tuple[int, int, int]:
        """The size that the model was trained on, in patches: time, height, width. Times are not folded by two here."""
        frames = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        return frames, self.sample_height // self.patch_size, self.sample_width // self.patch_size

    def to_json(self) -> str:
        """The text of a ``config.json`` that diffusers opens too."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Read a parsed ``config.json``; see ``weights.known_fields``."""
        return cls(**known_fields(cls, values, name=CLASS_NAME, part="transformer"))


_DEBUG = TransformerConfig(
    num_attention_heads=4,
    attention_head_dim=32,
    num_layers=4,
    time_embed_dim=128,
    text_embed_dim=128,
    max_text_seq_length=32,
    sample_frames=9,
    sample_height=8,
    sample_width=8,
    use_rotary_positional_embeddings=True,
)
_SMALL = TransformerConfig(
    num_attention_heads=12,
    num_layers=12,
    sample_height=32,
    sample_width=48,
    use_rotary_positional_embeddings=True,
)
_2B = TransformerConfig()
_5B = TransformerConfig(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_5B_V1_5 = dataclasses.replace(
    _5B, patch_size_t=2, patch_bias=False, sample_frames=81, sample_height=96, sample_width=170
)

SIZES: Mapping[str, TransformerConfig] = {
    "debug": _DEBUG,
    "debug_i2v": dataclasses.replace(_DEBUG, in_channels=32),
    "small": _SMALL,
    "small_i2v": dataclasses.replace(_SMALL, in_channels=32),
    "2b": _2B,
    "2b_i2v": dataclasses.replace(_2B, in_channels=32),
    "5b": _5B,
    "5b_i2v": dataclasses.replace(_5B, in_channels=32, use_learned_positional_embeddings=True),
    "5b_v1_5": _5B_V1_5,
    "5b_v1_5_i2v": dataclasses.replace(
        _5B_V1_5, in_channels=32, ofs_embed_dim=512, sample_height=300, sample_width=300
    ),
}
"""By name: two CPU cores (1.7 million parameters), one card (145 million), and the published ones.

``2b_i2v`` was never published."""


def size(name: str) -> TransformerConfig:
    """The configuration called ``name``; UsageError if there is none."""
    if name not in SIZES:
        raise UsageError(f"no transformer size {name!r}.{nearest(name, SIZES)}")
    return SIZES[name]
