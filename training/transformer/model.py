"""The expert transformer of CogVideoX: it says in which direction noisy latents are to be cleaned, given a text.

    transformer = Transformer(size("debug"))            # or Transformer.from_pretrained(folder), a published one
    v = transformer(latents, text, t)                   # (B, T, C, H, W), (B, L, D), (B,) -> (B, T, C, H, W)
    vs = transformer([a, b, c], [x, y, z], t)           # a pack: lists of (T, C, H, W) and (L, D) of any sizes, (3,)

Names of parameters and configuration are those of diffusers' ``CogVideoXTransformer3DModel``, and a batch gives the
same numbers. A pack (Frame Pack, CogVideoX technical report, arXiv 2408.06072) gives each sample what it gets alone.
Latents are laid out (B, T, C, H, W) as in diffusers, scaled as for the diffusion (``sampling.scaled``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from training import weights
from training.recompute import recompute
from training.transformer.attention import ATTENTION, Attention, Segments
from training.transformer.config import TransformerConfig
from training.transformer.layers import Block, Layout, OutputNorm, PatchEmbed, TimeEmbedding
from training.transformer.patches import grid_of, patchify, unpatchify
from training.transformer.positions import Grid, rotary, sinusoidal

PART = "transformer"
OFS = 2.0  # what CogVideoX 1.5 image-to-video was trained and is sampled with


class Share:
    """Which tokens this process computes: all of them."""

    def take(self, text: Tensor, video: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Layout]:
        """This process's part of what enters the blocks."""
        return text, video, layout

    def join(self, video: Tensor) -> Tensor:
        """All of the output (B, V, C) from this process's part."""
        return video


class Transformer(nn.Module):
    """The expert transformer. ``attention`` (see attention.py) may be set to another way for packs, by name there."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.attention: Attention = ATTENTION["split"]
        self.share = Share()  # another one under parallel.context_parallel
        self.patch_embed = PatchEmbed(config)
        self.time_embedding = TimeEmbedding(config, config.width, config.time_embed_dim)
        if config.ofs_embed_dim:
            self.ofs_embedding = TimeEmbedding(config, config.ofs_embed_dim, config.ofs_embed_dim)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_final = nn.LayerNorm(config.width, config.norm_eps, config.norm_elementwise_affine)
        self.norm_out = OutputNorm(config)
        self.proj_out = nn.Linear(config.width, config.out_channels * config.patch_channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    @overload
    def forward(self, latents: Tensor, text: Tensor, t: Tensor, *, clean: Tensor | None = None) -> Tensor: ...

    @overload
    def forward(
        self,
        latents: Sequence[Tensor],
        text: Sequence[Tensor],
        t: Tensor,
        *,
        clean: Sequence[Tensor] | None = None,
    ) -> list[Tensor]: ...

    def forward(
        self,
        latents: Tensor | Sequence[Tensor],
        text: Tensor | Sequence[Tensor],
        t: Tensor,
        *,
        clean: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor | list[Tensor]:
        """The velocity of each latent: of a batch (tensors) or of a pack (sequences of tensors without the B).

        Args:
            latents: (B, T, C, H, W); in image-to-video the C of the noisy latent and the C of the first frame's.
            text: embeddings (B, L, text_embed_dim). Zeros stand for no text. There is no mask.
            t: the timestep of each sample: (B,).
            clean: frames that are given as they are: bool (B, T). They are modulated as at t = 0. A patch of two
                frames is clean when both are.

        Returns:
            (B, T, out_channels, H, W), or a list of such without B.

        Raises:
            ValueError: patches do not fill the latents, or learned positions do not reach that far.
        """
        if isinstance(latents, Tensor):
            assert isinstance(text, Tensor)
            assert clean is None or isinstance(clean, Tensor)
            return self._batch(latents, text, t, clean=clean)
        return self._pack(latents, list(text), t, clean=None if clean is None else list(clean))

    def _batch(self, latents: Tensor, text: Tensor, t: Tensor, *, clean: Tensor | None) -> Tensor:
        if not len(latents) == len(text) == len(t):
            raise ValueError(f"a batch of {len(latents)} latents, {len(text)} texts and {len(t)} timesteps")
        grid = grid_of(self.config, latents)
        rows = torch.arange(len(latents), device=latents.device)[:, None]  # (B, 1)
        tokens = self._run(
            text,
            patchify(self.config, latents),
            rows=self._rows(t, latents.dtype, clean=clean is not None),
            text_rows=rows,
            video_rows=rows if clean is None else _rows_of(clean, rows, len(latents), grid),
            grids=[grid],
            words=[text.shape[1]],
            segments=None,
        )
        return unpatchify(self.config, tokens, grid)

    def _pack(
        self, latents: Sequence[Tensor], text: list[Tensor], t: Tensor, *, clean: list[Tensor] | None
    ) -> list[Tensor]:
        if not len(latents) == len(text) == len(t) == len(clean or text):
            raise ValueError(f"a pack of {len(latents)} latents, {len(text)} texts and {len(t)} timesteps")
        grids = [grid_of(self.config, x) for x in latents]
        words = [len(x) for x in text]
        tokens = [frames * height * width for frames, height, width in grids]
        segments = Segments(text=tuple(words), video=tuple(tokens))
        ids = segments.ids(latents[0].device)[None]  # (1, N)
        text_rows, video_rows = torch.split(ids, [sum(words), sum(tokens)], dim=1)
        if clean is not None:
            samples = zip(clean, torch.split(video_rows, tokens, dim=1), grids, strict=True)
            video_rows = torch.cat([_rows_of(c[None], r, len(t), grid) for c, r, grid in samples], dim=1)
        out = self._run(
            torch.cat(text)[None],
            torch.cat([patchify(self.config, x[None]) for x in latents], dim=1),
            rows=self._rows(t, latents[0].dtype, clean=clean is not None),
            text_rows=text_rows,
            video_rows=video_rows,
            grids=grids,
            words=words,
            segments=segments,
        )
        parts = zip(torch.split(out, tokens, dim=1), grids, strict=True)
        return [unpatchify(self.config, x, grid)[0] for x, grid in parts]

    def _run(
        self,
        text: Tensor,
        patches: Tensor,
        *,
        rows: Tensor,
        text_rows: Tensor,
        video_rows: Tensor,
        grids: list[Grid],
        words: list[int],
        segments: Segments | None,
    ) -> Tensor:
        """Text (B, L, text_embed_dim) and patches (B, V, C * patch) to patches of the output."""
        text, video = self.patch_embed(text, patches)
        text_places, places = self._added(grids, words, video)
        if places is not None:
            video = video + places
        if text_places is not None:
            text = text + text_places
        turns = self._turns(grids, sum(words), video.device)
        layout = Layout(rows, text_rows, video_rows, turns, self.attention(segments, video.device))
        text, video, layout = self.share.take(text, video, layout)
        for block in self.transformer_blocks:
            text, video = block(text, video, layout)
        return self.share.join(self.proj_out(self.norm_out(self.norm_final(video), layout)))

    def _rows(self, t: Tensor, dtype: torch.dtype, *, clean: bool) -> Tensor:
        """The activated embedding of each timestep, and one of t = 0 at the end for clean frames: (B or B + 1, E)."""
        if clean:
            t = torch.cat([t, t.new_zeros(1)])
        rows: Tensor = self.time_embedding(t, dtype)
        if self.config.ofs_embed_dim:
            rows = rows + self.ofs_embedding(torch.full((1,), OFS, device=t.device), dtype)
        return functional.silu(rows)

    def _turns(self, grids: list[Grid], words: int, device: torch.device) -> Tensor | None:
        """Rotary positions of the whole sequence; text is turned by nothing."""
        if not self.config.use_rotary_positional_embeddings:
            return None
        turns = [rotary(self.config, grid, device=device) for grid in grids]
        still = torch.tensor([1.0, 0.0], device=device).expand(words, *turns[0].shape[1:])  # cosine and sine of 0
        return torch.cat([still, *turns])

    def _added(self, grids: list[Grid], words: list[int], like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Positions that are added to text and to video tokens: (L, D) and (V, D), or None."""
        config = self.config
        if config.use_learned_positional_embeddings:
            places = self.patch_embed.pos_embedding[0].to(like.dtype)
            text, video = torch.split(places, [config.max_text_seq_length, len(places) - config.max_text_seq_length])
            if max(words) > len(text):
                raise ValueError(f"a text of {max(words)} tokens: positions were learned for {len(text)}")
            return torch.cat([text[:count] for count in words]), torch.cat([_first(config, video, g) for g in grids])
        if config.use_rotary_positional_embeddings:
            return None, None
        waves = [sinusoidal(config, grid, device=like.device, dtype=like.dtype) for grid in grids]
        return None, torch.cat(waves)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype | None = torch.float32) -> Transformer:
        """Load a folder that this or diffusers' ``save_pretrained`` wrote, or the one of a whole pipeline.

        Reads ``config.json`` and safetensors (also in shards); ``dtype`` None keeps that of the file. Raises
        UsageError with the folder, what is missing in it and what to do.
        """
        folder = weights.find(folder, part=PART)
        config = weights.read_config(folder, TransformerConfig.from_mapping, part=PART)
        with torch.device("meta"):  # nothing is filled in that is to be overwritten
            transformer = cls(config)
        state = weights.read_weights(folder, dtype=dtype)
        weights.check_names(folder, wanted=transformer.state_dict(), found=state)
        transformer.load_state_dict(state, assign=True)
        return transformer.eval()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        state: Mapping[str, Tensor] | None = None,
        shard_bytes: int = weights.SHARD_BYTES,
    ) -> None:
        """Write ``config.json`` and the weights (or ``state``, such as their moving average) for this and diffusers."""
        state = self.state_dict() if state is None else state
        weights.write(folder, config=self.config.to_json(), state=state, shard_bytes=shard_bytes)


def _rows_of(clean: Tensor, rows: Tensor, zero: int, grid: Grid) -> Tensor:
    """The row of each video token: ``rows`` (B, 1 or V), or ``zero`` where its frames are ``clean`` (B, T)."""
    frames, height, width = grid
    if clean.ndim != 2 or clean.shape[1] % frames:
        raise ValueError(f"clean marks frames, (B, T), and is {tuple(clean.shape)}")
    patches = clean.reshape(len(clean), frames, -1).all(-1)  # (B, frames of patches)
    tokens = patches[:, :, None].expand(-1, -1, height * width).flatten(1)  # (B, V)
    return torch.where(tokens, zero, rows)


def _first(config: TransformerConfig, places: Tensor, grid: Grid) -> Tensor:
    """Learned positions of the first frames, as in SAT. (diffusers takes sinusoids for another number of frames.)"""
    frames, height, width = config.sample_grid
    if grid[0] > frames or grid[1:] != (height, width):
        raise ValueError(f"a grid of {grid} patches: positions were learned for up to {(frames, height, width)}")
    return places[: grid[0] * height * width]


def blocks(transformer: Transformer) -> list[Block]:
    """The blocks in the order in which they run: the unit to checkpoint, to shard (FSDP2) and to compile."""
    return [cast(Block, block) for block in transformer.transformer_blocks]


def checkpoint_blocks(transformer: Transformer) -> None:
    """Keep no activations within blocks; see ``recompute``."""
    recompute(blocks(transformer))
