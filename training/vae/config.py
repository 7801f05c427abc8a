"""What a VAE is built from (the diffusers config.json), its named sizes, and how it is cut in time and in space."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from curation.errors import UsageError, nearest
from training.weights import known_fields

CLASS_NAME = "AutoencoderKLCogVideoX"
_DOWN = "CogVideoXDownBlock3D"
_UP = "CogVideoXUpBlock3D"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The fields of the ``config.json`` of diffusers' ``AutoencoderKLCogVideoX``, with its defaults: size ``full``.

    The number of ``block_out_channels`` gives the compression of space (2 per block but the last: 8 for four blocks);
    ``temporal_compression_ratio`` that of time. ``sample_height`` to ``latents_std``, ``force_upcast`` and
    ``invert_scale_latents`` change nothing here: they are for those who read latents, and are kept.

    ``scaling_factor`` is **not** applied by the model. Latents that a diffusion model trains on are
    ``scaling_factor * z``, and are divided by it before ``decode``.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (_DOWN,) * 4
    up_block_types: tuple[str, ...] = (_UP,) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    act_fn: str = "silu"
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: float = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    invert_scale_latents: bool = False

    def __post_init__(self) -> None:
        blocks = len(self.block_out_channels)
        if self.down_block_types != (_DOWN,) * blocks or self.up_block_types != (_UP,) * blocks:
            raise UsageError(
                f"block_out_channels has {blocks} blocks: down_block_types must be {blocks} times {_DOWN!r} and "
                f"up_block_types {blocks} times {_UP!r}, not {self.down_block_types} and {self.up_block_types}"
            )
        if self.act_fn not in ("silu", "swish"):
            raise UsageError(f"act_fn {self.act_fn!r} is not built; this VAE has 'silu'")
        if self.use_quant_conv or self.use_post_quant_conv:
            raise UsageError(
                "use_quant_conv and use_post_quant_conv are not built; no published CogVideoX VAE has them"
            )
        uneven = [width for width in self.block_out_channels if width % max(self.norm_num_groups, 1)]
        if uneven or self.norm_num_groups < 1:
            raise UsageError(
                f"norm_num_groups {self.norm_num_groups} does not divide block_out_channels {self.block_out_channels}"
            )
        if self.temporal_compression_ratio not in [2**level for level in range(blocks)]:
            raise UsageError(
                f"temporal_compression_ratio {self.temporal_compression_ratio} must be a power of 2 up to "
                f"{2 ** (blocks - 1)} for {blocks} blocks"
            )

    @property
    def time_ratio(self) -> int:
        """Frames per latent (the first latent stands for one frame)."""
        return int(self.temporal_compression_ratio)

    @property
    def space_ratio(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def time_levels(self) -> int:
        """How many blocks halve the time."""
        return self.time_ratio.bit_length() - 1

    def to_json(self) -> str:
        """The text of a ``config.json`` that diffusers opens too."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> VAEConfig:
        """Read a parsed ``config.json``; see ``weights.known_fields``."""
        given = known_fields(cls, values, name=CLASS_NAME, part="VAE")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return cls(**fields)


SIZES: Mapping[str, VAEConfig] = {
    "debug": VAEConfig(block_out_channels=(8, 16, 32, 64), layers_per_block=1, norm_num_groups=2),
    "small": VAEConfig(block_out_channels=(64, 128, 128, 256), layers_per_block=2),
    "full": VAEConfig(),
}
"""By name: for tests and a laptop, for one card, and the published one (215,583,907 parameters)."""


def size(name: str) -> VAEConfig:
    """The configuration called ``name``; UsageError if there is none."""
    if name not in SIZES:
        raise UsageError(f"no VAE size {name!r}.{nearest(name, SIZES)}")
    return SIZES[name]


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How many frames (encode) and latents (decode) pass through at a time; what is left over joins the first.

    The frames before a chunk reach it through its convolutions, exactly. But GroupNorm pools over the frames that it
    sees, so a chunked latent is **not** a whole one (they differ by 16% on random weights): the chunks belong to the
    definition of the model and to the key of every cache of latents. Equal chunks have an equal ``str`` and hash.
    The default is how CogVideoX was published.
    """

    frames: int = 8
    latents: int = 2

    def __post_init__(self) -> None:
        if self.frames < 1 or self.latents < 1:
            raise UsageError(f"a chunk has at least one frame and one latent, not {self.frames} and {self.latents}")

    def __str__(self) -> str:
        return f"{self.frames} frames, {self.latents} latents"


def spans(length: int, size: int | None) -> list[tuple[int, int]]:
    """Cut ``length`` into spans of ``size`` (None: one span); the remainder joins the first, as in diffusers."""
    if size is None or length < 2 * size:
        return [(0, length)]
    first = size + length % size
    return [(0, first), *((start, start + size) for start in range(first, length, size))]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Size of a tile in pixels and the part of it that overlaps the next one. The default is diffusers' (480x720).

    A picture no larger than one tile is not cut. Each tile is encoded by itself, and neighbours are blended linearly
    over the overlap. GroupNorm pools over a tile, so tiled results differ from whole ones.
    """

    height: int = 240
    width: int = 360
    overlap_height: float = 1 / 6
    overlap_width: float = 1 / 5

    def axis(self, name: str, ratio: int) -> tuple[int, int, int]:
        """Length of a tile, stride and overlap along ``height`` or ``width``, in latents of ``ratio`` pixels.

        Raises UsageError where stride and tile are not whole latents: diffusers then puts tiles in wrong places.
        """
        pixels: int = getattr(self, name)
        share: float = getattr(self, f"overlap_{name}")
        tile = pixels // ratio
        overlap = round(tile * share)
        if pixels % ratio or not 0 <= overlap < tile or abs(tile * share - overlap) > 0.01:
            raise UsageError(
                f"tiles of {name} {pixels} that overlap by {share:.4g} do not fall on multiples of {ratio} pixels; "
                f"choose a {name} that is a multiple of {ratio}, and an overlap_{name} of "
                f"{overlap or 1}/{-(-pixels // ratio)} or so"
            )
        return tile, tile - overlap, overlap
