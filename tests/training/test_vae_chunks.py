"""The VAE in chunks of time and tiles of space: what comes back, what is exact, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from curation.errors import UsageError
from tests.training.vae_helpers import TINY, apart, tiny, video
from training.vae import layers
from training.vae.config import Chunks, Tiles, spans
from training.vae.model import VAE
from training.vae.timeline import Timeline


class Unpooled(Timeline):
    """GroupNorm's statistics are the only reason why a result in chunks differs; leave them out."""

    def group_norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        del norm
        return x


@pytest.mark.parametrize("chunks", [None, Chunks(), Chunks(4, 1), Chunks(12, 3)], ids=str)
@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 21, 25, 33])
def test_as_many_frames_come_out_as_went_in(frames: int, chunks: Chunks | None) -> None:
    vae, x = tiny(), video(1, 3, frames, 16, 8)
    with torch.no_grad():
        z = vae.encode(x, chunks=chunks).mean
        assert z.shape[1:] == vae.latent_shape(frames, 16, 8)
        assert vae.decode(z, chunks=chunks).shape == x.shape


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(4, 1), Chunks(12, 3), Chunks(16, 4)], ids=str)
@pytest.mark.parametrize("frames", [13, 17, 33])
def test_chunks_lose_nothing_between_them(frames: int, chunks: Chunks) -> None:
    vae, x, z = tiny(), video(1, 3, frames, 16, 16), video(1, TINY.latent_channels, frames // 4 + 1, 2, 2)
    vae.timeline = Unpooled
    gradients = []
    for cut in (None, chunks):
        vae.zero_grad()
        encoded, decoded = vae.encode(x, chunks=cut).mean, vae.decode(z, chunks=cut)
        (encoded.square().mean() + decoded.square().mean()).backward()
        gradients.append((encoded, decoded, *[p.grad.clone() for p in vae.parameters() if p.grad is not None]))
    assert max(apart(whole, cut) for whole, cut in zip(*gradients, strict=True)) < 1e-5


def test_with_group_norm_chunks_are_another_model() -> None:
    vae, x = tiny(), video(1, 3, 17, 16, 16)
    assert apart(vae.encode(x, chunks=Chunks()).mean, vae.encode(x).mean) > 1e-3


def test_no_latent_depends_on_a_later_frame() -> None:
    vae, x = tiny(), video(1, 3, 17, 16, 16)
    vae.timeline = Unpooled
    changed = x.clone()
    changed[:, :, 9:] = 0
    before, after = vae.encode(x).mean, vae.encode(changed).mean
    assert torch.equal(before[:, :, :3], after[:, :, :3])  # frames 0, 1-4 and 5-8
    assert not torch.equal(before[:, :, 3], after[:, :, 3])


def test_the_first_frame_of_a_video_is_encoded_as_a_picture() -> None:
    vae, x = tiny(), video(1, 3, 9, 16, 16)
    vae.timeline = Unpooled
    assert apart(vae.encode(x).mean[:, :, :1], vae.encode(x[:, :, :1]).mean) < 1e-6


@pytest.mark.parametrize(
    ("length", "size", "cut"),
    [
        (17, None, [(0, 17)]),
        (1, 8, [(0, 1)]),
        (13, 8, [(0, 13)]),
        (17, 8, [(0, 9), (9, 17)]),
        (49, 8, [(0, 9), *((start, start + 8) for start in range(9, 49, 8))]),
        (13, 2, [(0, 3), (3, 5), (5, 7), (7, 9), (9, 11), (11, 13)]),
        (4, 2, [(0, 2), (2, 4)]),
    ],
)
def test_the_remainder_joins_the_first_chunk(length: int, size: int | None, cut: list[tuple[int, int]]) -> None:
    assert spans(length, size) == cut


def test_chunks_can_be_a_key() -> None:
    assert str(Chunks()) == "8 frames, 2 latents"
    assert {Chunks(): 1}[Chunks(frames=8, latents=2)] == 1
    assert Chunks() != Chunks(frames=16)


def test_chunks_that_fill_no_latent_are_refused() -> None:
    with pytest.raises(ValueError, match="a chunk of 6 frames does not fill latents of 4"):
        tiny().encode(video(1, 3, 17, 8, 8), chunks=Chunks(frames=6))
    with pytest.raises(UsageError, match="not 0 and 2"):
        Chunks(frames=0)


@pytest.mark.parametrize("tiles", [Tiles(height=36), Tiles(height=32, overlap_height=0.2), Tiles(overlap_width=1.0)])
def test_tiles_off_the_grid_of_latents_are_refused(tiles: Tiles) -> None:
    with pytest.raises(UsageError, match="do not fall on multiples of 8 pixels"):
        tiny().encode(video(1, 3, 1, 256, 376), tiles=tiles)


def test_the_overlap_that_an_error_proposes_is_accepted() -> None:
    with pytest.raises(UsageError) as caught:
        Tiles(height=40, overlap_height=0.3).axis("height", 8)
    over, under = map(int, re.findall(r"overlap_height of (\d+)/(\d+)", str(caught.value))[0])
    assert Tiles(height=40, overlap_height=over / under).axis("height", 8) == (5, 3, 2)


def test_tiles_without_overlap_stand_side_by_side() -> None:
    vae, x = tiny(), video(1, 3, 1, 32, 16)
    tiles = Tiles(height=16, width=16, overlap_height=0, overlap_width=0)
    parts = [vae.encode(x[:, :, :, :16]).mean, vae.encode(x[:, :, :, 16:]).mean]
    assert torch.equal(vae.encode(x, tiles=tiles).mean, torch.cat(parts, 3))


def test_a_picture_of_one_tile_is_not_cut() -> None:
    vae, x = VAE(TINY), video(1, 3, 1, 32, 48)
    assert torch.equal(vae.encode(x, tiles=Tiles(height=32, width=48, overlap_height=0.25)).mean, vae.encode(x).mean)


@pytest.mark.parametrize("piece", [1, 2000, layers.PIECE], ids=["frame by frame", "some frames", "all frames"])
@pytest.mark.parametrize("chunks", [None, Chunks(), Chunks(4, 1)], ids=str)
def test_saving_memory_without_gradients_changes_nothing(
    chunks: Chunks | None, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "PIECE", piece)
    vae, x, z = tiny(), video(2, 3, 21, 16, 24), video(2, TINY.latent_channels, 6, 2, 3)
    x_before, z_before = x.clone(), z.clone()
    with torch.no_grad():
        encoded, decoded = vae.encode(x, chunks=chunks), vae.decode(z, chunks=chunks)
    assert apart(encoded.mean, vae.encode(x, chunks=chunks).mean) < 1e-5
    assert apart(decoded, vae.decode(z, chunks=chunks)) < 1e-5
    assert torch.equal(x, x_before) and torch.equal(z, z_before)
