"""Spatial tiling: a picture too large for the memory is encoded or decoded in overlapping tiles, blended linearly.

The numbers are those of diffusers. Its blending works in place, so a tile is blended with neighbours that are blended
already; here each tile is replaced by its blended self for the same result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.vae.config import Tiles


def tiled_encode(encode: Callable[[Tensor], Tensor], x: Tensor, *, tiles: Tiles, ratio: int) -> Tensor:
    """Encode ``x`` (B, C, T, H, W) by tiles; ``encode`` shrinks height and width by ``ratio``."""
    (tile_h, step_h, lap_h), (tile_w, step_w, lap_w) = tiles.axis("height", ratio), tiles.axis("width", ratio)
    # A last strip of less than one latent adds nothing to the result. (diffusers fails on it.)
    tops = range(0, max(x.shape[3] - ratio + 1, 1), step_h * ratio)
    lefts = range(0, max(x.shape[4] - ratio + 1, 1), step_w * ratio)
    rows = [
        [encode(x[:, :, :, top : top + tile_h * ratio, left : left + tile_w * ratio]) for left in lefts] for top in tops
    ]
    return _join(rows, blend=(lap_h, lap_w), limit=(step_h, step_w))


def tiled_decode(decode: Callable[[Tensor], Tensor], z: Tensor, *, tiles: Tiles, ratio: int) -> Tensor:
    """Decode ``z`` (B, C, T, H, W) by tiles; ``decode`` enlarges height and width by ``ratio``."""
    (tile_h, step_h, lap_h), (tile_w, step_w, lap_w) = tiles.axis("height", ratio), tiles.axis("width", ratio)
    tops, lefts = range(0, z.shape[3], step_h), range(0, z.shape[4], step_w)
    rows = [[decode(z[:, :, :, top : top + tile_h, left : left + tile_w]) for left in lefts] for top in tops]
    return _join(rows, blend=(lap_h * ratio, lap_w * ratio), limit=(step_h * ratio, step_w * ratio))


def _join(rows: list[list[Tensor]], *, blend: tuple[int, int], limit: tuple[int, int]) -> Tensor:
    """Blend each tile with the one above and the one to the left, cut it to ``limit``, and put all together."""
    for i, row in enumerate(rows):
        for j in range(len(row)):
            if i > 0:
                row[j] = _blend(rows[i - 1][j], row[j], dim=3, extent=blend[0])
            if j > 0:
                row[j] = _blend(row[j - 1], row[j], dim=4, extent=blend[1])
    joined = [torch.cat([tile[:, :, :, : limit[0], : limit[1]] for tile in row], dim=4) for row in rows]
    return torch.cat(joined, dim=3)


def _blend(before: Tensor, tile: Tensor, *, dim: int, extent: int) -> Tensor:
    """Fade from the end of ``before`` to the start of ``tile`` over at most ``extent`` places along ``dim``."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return tile
    shape = [1] * tile.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device, dtype=torch.float32) / extent).to(tile.dtype).view(shape)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head, rest = tile.narrow(dim, 0, extent), tile.narrow(dim, extent, tile.shape[dim] - extent)
    return torch.cat([tail * (1 - weight) + head * weight, rest], dim=dim)
