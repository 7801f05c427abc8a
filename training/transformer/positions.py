"""Where a token stands in time, height and width: rotary and sinusoidal positions. Text has none.

Grids are (T, H, W) in patches. Training and sampling both come here, so that a size means the same in both: positions
by a slice in the one and by scaling in the other would agree at the base size only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.transformer.config import TransformerConfig

Grid = tuple[int, int, int]
_THETA = 10000.0


def rotary(config: TransformerConfig, grid: Grid, *, device: torch.device) -> Tensor:
    """The rotation of each pair of channels of a head: cosine and sine, fp32 (T * H * W, head_dim / 2, 2).

    A quarter of the channels turn with time, three eighths with height and three eighths with width. In CogVideoX 1.0
    a picture of another size is first scaled into the middle of the base size; in 1.5 positions simply count.
    Source: diffusers' ``get_3d_rotary_pos_embed`` and how its pipelines call it; SAT only counts, in both versions.
    """
    frames, height, width = grid
    base_height, base_width = config.sample_grid[1:]
    time = torch.arange(frames, device=device, dtype=torch.float32)
    if config.patch_size_t is None:
        (top, bottom), (left, right) = _placed(height, width, base_height=base_height, base_width=base_width)
        rows, columns = _steps(top, bottom, height, device=device), _steps(left, right, width, device=device)
    else:
        rows = torch.arange(height, device=device, dtype=torch.float32)
        columns = torch.arange(width, device=device, dtype=torch.float32)
    quarter, eighths = config.attention_head_dim // 4, config.attention_head_dim // 8 * 3
    angles = [
        _angles(time, quarter)[:, None, None].expand(frames, height, width, -1),
        _angles(rows, eighths)[None, :, None].expand(frames, height, width, -1),
        _angles(columns, eighths)[None, None].expand(frames, height, width, -1),
    ]
    turned = torch.cat(angles, dim=-1).flatten(0, 2)  # (T * H * W, head_dim / 2)
    return torch.stack([turned.cos(), turned.sin()], dim=-1)


def _placed(height: int, width: int, *, base_height: int, base_width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, first and last column of a grid that is scaled to fit into the middle of the base size."""
    if height / width > base_height / base_width:
        rows, columns = base_height, round(base_height / height * width)
    else:
        rows, columns = round(base_width / width * height), base_width
    top, left = round((base_height - rows) / 2.0), round((base_width - columns) / 2.0)
    return (top, top + rows), (left, left + columns)


def _steps(start: int, stop: int, count: int, *, device: torch.device) -> Tensor:
    # The last step is what diffusers takes: `stop` shrunk as if `start` were 0.
    return torch.linspace(start, stop * (count - 1) / count, count, device=device, dtype=torch.float32)


def _angles(places: Tensor, channels: int) -> Tensor:
    """(N,) to (N, channels / 2)."""
    steps = torch.arange(0, channels, 2, device=places.device, dtype=torch.float32)
    return torch.outer(places, 1.0 / _THETA ** (steps / channels))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of ``x`` (B, N, heads, D) by ``turns`` (N, D / 2, 2), at least in fp32.

    As complex numbers: more than twice as fast on a CPU as the sums of products that diffusers writes out. The
    compiler has no complex numbers, and makes one kernel of the sums.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = torch.unflatten(wide, -1, (-1, 2))
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), turns[:, None].unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns)[:, None])
    return turned.flatten(-2).to(x.dtype)


def sinusoidal(config: TransformerConfig, grid: Grid, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What is added to each token: (T * H * W, width). A quarter of the channels for time, then width, then height."""
    frames, height, width = grid
    quarter = config.width // 4
    eighths = (config.width - quarter) // 2
    time = _waves(frames, quarter, scale=config.temporal_interpolation_scale, device=device).to(dtype)
    rows = _waves(height, eighths, scale=config.spatial_interpolation_scale, device=device).to(dtype)
    columns = _waves(width, eighths, scale=config.spatial_interpolation_scale, device=device).to(dtype)
    waves = [
        time[:, None, None].expand(frames, height, width, -1),
        columns[None, None].expand(frames, height, width, -1),
        rows[None, :, None].expand(frames, height, width, -1),
    ]
    return torch.cat(waves, dim=-1).flatten(0, 2)


def _waves(count: int, channels: int, *, scale: float, device: torch.device) -> Tensor:
    """Sines, then cosines, of places 0 .. count - 1: (count, channels) in fp64."""
    places = (torch.arange(count, device=device, dtype=torch.float32) / scale).double()
    steps = torch.arange(channels // 2, device=device, dtype=torch.float64) / (channels / 2)
    angles = torch.outer(places, 1.0 / _THETA**steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def of_time(t: Tensor, channels: int, *, flip: bool, shift: float) -> Tensor:
    """Waves of a number such as a timestep: (K,) to (K, channels) in fp32; with ``flip`` cosines come first.

    Source: DDPM (arXiv 2006.11239), as diffusers' ``Timesteps``.
    """
    half = channels // 2
    # In this order of operations: at t = 999 another rounding shows in the fourth digit.
    exponents = -math.log(_THETA) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - shift)
    angles = t.float()[:, None] * exponents.exp()
    parts = [angles.cos(), angles.sin()] if flip else [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)
