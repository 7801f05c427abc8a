"""The parts of the transformer. Text and video are two streams that meet in attention and in the feed-forward."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.transformer.attention import Attend
from training.transformer.config import TransformerConfig
from training.transformer.positions import of_time, rotate, sinusoidal

_QK_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Layout:
    """What blocks must know of the tokens besides the tokens.

    Attributes:
        rows: (K, time_embed_dim), activated: what modulates, one for each timestep in the batch or pack. A frame that
            is given as it is takes that of t = 0.
        text: the row of each text token: (B, L), or (B, 1) where all tokens of a sample share it.
        video: the row of each video token: (B, V) or (B, 1).
        turns: rotary positions of all tokens, (L + V, head_dim / 2, 2) in fp32, or None where they were added.
        attend: who attends to whom.
    """

    rows: Tensor
    text: Tensor
    video: Tensor
    turns: Tensor | None
    attend: Attend


def _spread(table: Tensor, rows: Tensor, parts: int) -> tuple[Tensor, ...]:
    """``table`` (K, parts * D) by token: ``parts`` tensors (B, N, D), N being 1 where all tokens share a row.

    As an embedding, whose backward pass adds up in a fixed order on a GPU too.
    """
    return functional.embedding(rows, table).chunk(parts, dim=-1)


class ExpertNorm(nn.Module):
    """Normalise text and video alike, then scale and shift each by its own modulation (the "expert"), and give gates.

    The names are those of diffusers' ``CogVideoXLayerNormZero``. Zero at first: a new block changes nothing.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_embed_dim, 6 * config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps, config.norm_elementwise_affine)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, text: Tensor, video: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) and (B, V, D) to both in one sequence (B, L + V, D), and the gates of text and of video."""
        video_table, text_table = self.linear(layout.rows).chunk(2, dim=1)  # (K, 3 D) each
        shift, scale, gate = _spread(video_table, layout.video, 3)
        text_shift, text_scale, text_gate = _spread(text_table, layout.text, 3)
        modulated = [
            torch.addcmul(text_shift, self.norm(text), 1 + text_scale),
            torch.addcmul(shift, self.norm(video), 1 + scale),
        ]
        return torch.cat(modulated, dim=1), text_gate, gate


class SelfAttention(nn.Module):
    """Full attention over text and video, with normalised queries and keys and rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, head = config.width, config.attention_head_dim
        self.head = head
        self.norm_q = nn.LayerNorm(head, _QK_EPS)
        self.norm_k = nn.LayerNorm(head, _QK_EPS)
        self.to_q = nn.Linear(width, width, bias=config.attention_bias)
        self.to_k = nn.Linear(width, width, bias=config.attention_bias)
        self.to_v = nn.Linear(width, width, bias=config.attention_bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # a list, for the name: diffusers' holds a dropout too

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``x`` (B, N, D), text before video."""
        heads = (-1, self.head)
        query = self.norm_q(self.to_q(x).unflatten(-1, heads))  # (B, N, heads, head_dim)
        key = self.norm_k(self.to_k(x).unflatten(-1, heads))
        value = self.to_v(x).unflatten(-1, heads)
        if layout.turns is not None:
            query, key = rotate(query, layout.turns), rotate(key, layout.turns)
        # Under autocast the norms come out in fp32.
        out = layout.attend(query.to(value.dtype), key.to(value.dtype), value)
        return self.to_out[0](out.flatten(-2))


class _GELU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times as wide inside, GELU between."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        inner = 4 * config.width
        # diffusers has a dropout at place 1.
        self.net = nn.ModuleList([_GELU(config.width, inner), nn.Identity(), nn.Linear(inner, config.width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Block(nn.Module):
    """Attention, then feed-forward; each reads both streams and writes to each through its own gate."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = ExpertNorm(config)
        self.attn1 = SelfAttention(config)
        self.norm2 = ExpertNorm(config)
        self.ff = FeedForward(config)

    def forward(self, text: Tensor, video: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """``text`` (B, L, D) and ``video`` (B, V, D), changed."""
        lengths = [text.shape[1], video.shape[1]]
        x, text_gate, gate = self.norm1(text, video, layout)
        text_change, change = self.attn1(x, layout).split(lengths, dim=1)
        text, video = torch.addcmul(text, text_gate, text_change), torch.addcmul(video, gate, change)
        x, text_gate, gate = self.norm2(text, video, layout)
        text_change, change = self.ff(x).split(lengths, dim=1)
        return torch.addcmul(text, text_gate, text_change), torch.addcmul(video, gate, change)


class OutputNorm(nn.Module):
    """The last normalisation of the video, modulated by its timestep. Zero at first."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_embed_dim, 2 * config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps, config.norm_elementwise_affine)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, video: Tensor, layout: Layout) -> Tensor:
        shift, scale = _spread(self.linear(layout.rows), layout.video, 2)
        return torch.addcmul(shift, self.norm(video), 1 + scale)


class TimeEmbedding(nn.Module):
    """Numbers such as timesteps to vectors: (K,) to (K, out)."""

    def __init__(self, config: TransformerConfig, channels: int, out: int) -> None:
        super().__init__()
        self.channels = channels
        self.flip, self.shift = config.flip_sin_to_cos, config.freq_shift
        self.linear_1 = nn.Linear(channels, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        waves = of_time(t, self.channels, flip=self.flip, shift=self.shift)
        return self.linear_2(functional.silu(self.linear_1(waves.to(dtype))))


class _FlatPatches(nn.Conv2d):
    """Holds its weight as the convolution of CogVideoX 1.0 does, and applies it to patches that are cut already."""

    def forward(self, patches: Tensor) -> Tensor:
        return functional.linear(patches, self.weight.flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Patches of latents and embeddings of words to tokens of one width."""

    pos_embedding: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        patch = config.patch_size
        if config.patch_size_t is None:
            self.proj: nn.Module = _FlatPatches(
                config.in_channels, config.width, patch, stride=patch, bias=config.patch_bias
            )
        else:
            self.proj = nn.Linear(config.in_channels * config.patch_channels, config.width)
        self.text_proj = nn.Linear(config.text_embed_dim, config.width)
        if config.use_learned_positional_embeddings:
            words = torch.zeros(config.max_text_seq_length, config.width)
            video = sinusoidal(config, config.sample_grid, device=words.device, dtype=words.dtype)
            # A buffer, as in diffusers. In SAT it learns.
            self.register_buffer("pos_embedding", torch.cat([words, video])[None])  # (1, L + V, D)

    def forward(self, text: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, text_embed_dim) and (B, V, C * patch) to (B, L, D) and (B, V, D), without positions."""
        return self.text_proj(text), self.proj(patches)
