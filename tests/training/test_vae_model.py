"""The VAE against diffusers' one: outputs, gradients, names, files; and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from curation.errors import UsageError
from curation.torchvision import mend
from tests.training.vae_helpers import TINY, apart, theirs, tiny, video
from training.vae.config import SIZES, Chunks, Tiles, VAEConfig, size
from training.vae.gaussian import Gaussian
from training.vae.model import VAE, blocks, checkpoint_blocks

EVERYTHING = 10**6  # frames per chunk: diffusers has no other way to say "whole"
TILES = Tiles(height=32, width=48, overlap_height=0.25, overlap_width=1 / 3)


def both(vae: VAE, *, chunks: Chunks | None, tiles: Tiles | None = None) -> Any:
    """diffusers' model set to cut as ``chunks`` and ``tiles`` say."""
    model = theirs(vae)
    model.num_sample_frames_batch_size = chunks.frames if chunks else EVERYTHING
    model.num_latent_frames_batch_size = chunks.latents if chunks else EVERYTHING
    if tiles:
        model.enable_tiling(tiles.height, tiles.width, tiles.overlap_height, tiles.overlap_width)
    return model


def assert_same_gradients(ours: torch.Tensor, other: torch.Tensor, a: Any, b: Any) -> None:
    """Backward through both, along one random direction; compare the gradient of every parameter that has one."""
    direction = video(*ours.shape, seed=5) / ours.numel() ** 0.5
    (ours * direction).sum().backward()
    (other * direction).sum().backward()
    reference = dict(b.named_parameters())
    touched = 0
    for name, parameter in a.named_parameters():
        if reference[name].grad is None:
            assert parameter.grad is None, name
            continue
        touched += 1
        assert apart(parameter.grad, reference[name].grad) < 1e-5, name
    assert touched > 20


@pytest.mark.parametrize("chunks", [None, Chunks(), Chunks(frames=4, latents=2)], ids=["whole", "8+2", "4+2"])
@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@pytest.mark.parametrize("picture", [(16, 24), (19, 30)], ids=["even", "odd"])
def test_encode_equals_diffusers(frames: int, picture: tuple[int, int], chunks: Chunks | None) -> None:
    vae, x = tiny(), video(2, 3, frames, *picture)
    model = both(vae, chunks=chunks)
    ours, other = vae.encode(x, chunks=chunks), model.encode(x).latent_dist
    assert apart(ours.mean, other.mean) < 1e-5
    assert apart(ours.logvar, other.logvar) < 1e-5
    assert ours.mean.shape[1:] == vae.latent_shape(frames, *picture)
    assert_same_gradients(torch.cat(ours, 1), torch.cat([other.mean, other.logvar], 1), vae, model)


# diffusers' result is defined for one latent and for odd numbers: it takes 2 latents for 8 frames.
@pytest.mark.parametrize(
    ("latents", "chunks"),
    [
        (1, None),
        (3, None),
        (5, None),
        (1, Chunks()),
        (3, Chunks()),
        (5, Chunks()),
        (7, Chunks(8, 2)),
        (9, Chunks(8, 4)),
    ],
    ids=str,
)
def test_decode_equals_diffusers(latents: int, chunks: Chunks | None) -> None:
    vae, z = tiny(), video(2, TINY.latent_channels, latents, 2, 3)
    model = both(vae, chunks=chunks)
    ours, other = vae.decode(z, chunks=chunks), model.decode(z).sample
    assert ours.shape == (2, 3, 4 * latents - 3, 16, 24)
    assert apart(ours, other) < 1e-5
    assert_same_gradients(ours, other, vae, model)


@pytest.mark.parametrize("picture", [(32, 48), (40, 48), (56, 80), (64, 104), (71, 110)], ids=str)
def test_tiled_equals_diffusers(picture: tuple[int, int]) -> None:
    vae, x = tiny(), video(1, 3, 9, *picture)
    model = both(vae, chunks=Chunks(), tiles=TILES)
    ours, other = vae.encode(x, chunks=Chunks(), tiles=TILES), model.encode(x).latent_dist
    assert apart(ours.mean, other.mean) < 1e-5
    assert_same_gradients(torch.cat(ours, 1), torch.cat([other.mean, other.logvar], 1), vae, model)
    z = video(*ours.mean.shape, seed=2)
    ours_decoded, other_decoded = vae.decode(z, chunks=Chunks(), tiles=TILES), model.decode(z).sample
    assert apart(ours_decoded, other_decoded) < 1e-5


def test_default_tiles_and_chunks_are_those_of_diffusers() -> None:
    model, tiles = theirs(tiny()), Tiles()
    assert (tiles.height, tiles.width) == (model.tile_sample_min_height, model.tile_sample_min_width)
    assert tiles.overlap_height == model.tile_overlap_factor_height
    assert tiles.overlap_width == model.tile_overlap_factor_width
    assert (Chunks().frames, Chunks().latents) == (
        model.num_sample_frames_batch_size,
        model.num_latent_frames_batch_size,
    )
    assert tiles.axis("height", 8) == (30, 25, 5)
    assert tiles.axis("width", 8) == (45, 36, 9)


def test_a_strip_thinner_than_a_latent_at_the_edge_is_no_tile() -> None:
    # The tiles stand 24 pixels apart: one would begin at 72 and hold 4 pixels. diffusers fails on it.
    x = video(1, 3, 1, 76, 48)
    assert tiny().encode(x, tiles=TILES).mean.shape == (1, 3, 1, 9, 6)


def test_full_size_has_the_published_parameters_by_name_and_shape() -> None:
    mend()
    from diffusers import AutoencoderKLCogVideoX

    with torch.device("meta"):
        ours, other = VAE(size("full")), AutoencoderKLCogVideoX()
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in other.state_dict().items()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == 215_583_907
    assert dataclasses.asdict(size("full")) == {
        name: value for name, value in other.config.items() if not name.startswith("_")
    }


@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_a_diffusers_model(name: str) -> None:
    mend()
    from diffusers import AutoencoderKLCogVideoX

    with torch.device("meta"):
        other = AutoencoderKLCogVideoX.from_config(json.loads(SIZES[name].to_json()))
        assert VAE(SIZES[name]).state_dict().keys() == other.state_dict().keys()


def test_diffusers_opens_what_we_save(tmp_path: Path) -> None:
    mend()
    from diffusers import AutoencoderKLCogVideoX

    vae, x = tiny(config=dataclasses.replace(TINY, scaling_factor=0.7)), video(1, 3, 9, 16, 16)
    vae.save_pretrained(tmp_path)
    model = AutoencoderKLCogVideoX.from_pretrained(tmp_path)
    assert model.config.scaling_factor == 0.7
    assert model.config.block_out_channels == list(TINY.block_out_channels)
    assert apart(vae.encode(x).mean, model.encode(x).latent_dist.mean) < 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("shard", ["10GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("place", [".", "vae"], ids=["folder", "pipeline"])
def test_we_open_what_diffusers_saves(tmp_path: Path, shard: str, place: str) -> None:
    vae = tiny()
    theirs(vae).save_pretrained(tmp_path / place, max_shard_size=shard)
    assert (len(list((tmp_path / place).glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded = VAE.from_pretrained(tmp_path)
    assert loaded.config == vae.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in vae.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_what_we_save_is_what_we_open(tmp_path: Path) -> None:
    vae = tiny()
    average = {name: value * 2 for name, value in vae.state_dict().items()}
    vae.save_pretrained(tmp_path, state=average)
    loaded = VAE.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(loaded[name], value.bfloat16()) for name, value in average.items())


def broken(folder: Path, fault: str) -> None:
    tiny().save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    if fault == "config":
        (folder / "config.json").unlink()
    elif fault == "other model":
        (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    elif fault == "no json":
        (folder / "config.json").write_text("{")
    elif fault == "pickle":
        weights.rename(folder / "diffusion_pytorch_model.bin")
    elif fault == "torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif fault == "shard":
        weights.unlink()
        index = {"weight_map": {"encoder.conv_in.conv.bias": "model-1-of-2.safetensors"}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    elif fault == "tensor":
        save_file({"encoder.conv_in.conv.bias": torch.zeros(4), "loss.weight": torch.zeros(1)}, weights)
    elif fault == "width":
        tiny(config=dataclasses.replace(TINY, latent_channels=4)).save_pretrained(folder / "other")
        (folder / "other" / weights.name).replace(weights)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("config", "no config.json"),
        ("other model", "'AutoencoderKL', not 'AutoencoderKLCogVideoX'"),
        ("no json", "config.json cannot be read"),
        ("pickle", "diffusion_pytorch_model.bin is a pickle"),
        ("torn", "is damaged"),
        ("shard", "lacks model-1-of-2.safetensors"),
        ("tensor", r"lack decoder.conv_in.conv.bias.* and \d+ more"),
        ("width", r"in another shape .*decoder.conv_in.conv.weight \(16, 4, 3, 3, 3\) for \(16, 3, 3, 3, 3\)"),
    ],
)
def test_a_broken_folder_is_named_with_what_it_lacks(tmp_path: Path, fault: str, words: str) -> None:
    broken(tmp_path, fault)
    with pytest.raises(UsageError, match=words) as caught:
        VAE.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        VAE.from_pretrained(tmp_path / "nowhere")


def test_unknown_fields_of_a_config_are_named() -> None:
    with pytest.warns(UserWarning, match="unknown field 'sample_size'"):
        assert VAEConfig.from_mapping({"sample_size": 256, "_diffusers_version": "0.30"}) == size("full")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"use_quant_conv": True}, "use_quant_conv"),
        ({"norm_num_groups": 3}, "norm_num_groups 3 does not divide"),
        ({"temporal_compression_ratio": 3}, "power of 2 up to 8"),
        ({"block_out_channels": (4, 8)}, "2 blocks"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(TINY, **change)


def test_an_unknown_size_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no VAE size 'debgu'. Did you mean 'debug'\? Valid: debug, full, small"):
        size("debgu")


@pytest.mark.parametrize(("frames", "nearest"), [(2, "1 and 5"), (8, "5 and 9"), (16, "13 and 17"), (50, "49 and 53")])
def test_other_numbers_of_frames_are_refused_with_the_nearest_good_ones(frames: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"4k\+1 frames, not {frames}; the nearest it takes are {nearest}"):
        tiny().encode(video(1, 3, frames, 8, 8))
    with pytest.raises(ValueError, match=f"not {frames}"):
        tiny().latent_shape(frames, 8, 8)


def test_pictures_smaller_than_a_latent_are_refused() -> None:
    with pytest.raises(ValueError, match="from 8 pixels a side, not 7x16"):
        tiny().encode(video(1, 3, 1, 7, 16))


def test_kl_is_that_of_torch() -> None:
    posterior = Gaussian.of(video(2, 6, 2, 3, 4) * 3)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    assert posterior.kl().shape == (2,)
    assert apart(posterior.kl(), reference.sum((1, 2, 3, 4))) < 1e-6


def test_samples_follow_the_generator_and_the_gaussian() -> None:
    posterior = Gaussian(torch.full((1, 1, 1, 100, 100), 2.0), torch.full((1, 1, 1, 100, 100), 0.25).log())
    first = posterior.sample(torch.Generator().manual_seed(3))
    assert torch.equal(first, posterior.sample(torch.Generator().manual_seed(3)))
    assert abs(float(first.mean()) - 2.0) < 0.02
    assert abs(float(first.std()) - 0.5) < 0.02


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    plain, saving, x = tiny(), tiny(), video(1, 3, 17, 16, 16)
    checkpoint_blocks(saving)
    checkpoint_blocks(saving)  # once is enough
    assert saving.state_dict().keys() == plain.state_dict().keys()
    for vae in (plain, saving):
        z = vae.encode(x, chunks=Chunks()).mean
        vae.decode(z, chunks=Chunks()).square().mean().backward()
    for (name, ours), other in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and other.grad is not None and torch.equal(ours.grad, other.grad), name
    assert len(blocks(plain)) == 4 + 2 + 2 + 8


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "evaluation"])
def test_autocast_to_bfloat16_stays_near(gradients: bool) -> None:
    vae, x = tiny(), video(1, 3, 9, 16, 16)
    with torch.set_grad_enabled(gradients):
        reference = vae.decode(vae.encode(x).mean)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = vae.decode(vae.encode(x).mean)
    assert rounded.dtype == torch.bfloat16
    assert apart(rounded.float(), reference) < 0.1
