"""The transformer against diffusers' one: outputs, gradients, names, files; and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from curation.errors import UsageError
from curation.torchvision import mend
from tests.training.transformer_helpers import (
    TINY,
    apart,
    gradient_apart,
    gradients,
    noise,
    their_positions,
    theirs,
    tiny,
)
from training.transformer.config import SIZES, TransformerConfig, size
from training.transformer.model import Transformer, blocks, checkpoint_blocks
from training.transformer.patches import fill_front, patchify, unpatchify
from training.transformer.positions import rotary, rotate

FLAT = ["2b", "2b_i2v", "5b"]  # of 1.0, any size
GRIDS = [(1, 8, 12), (3, 8, 12), (2, 4, 4), (5, 6, 14), (4, 12, 6), (3, 10, 16)]  # the base size is (3, 8, 12)
DEEP = ["5b_v1_5", "5b_v1_5_i2v"]


def cases() -> list[Any]:
    flat = [(name, grid) for name in FLAT for grid in GRIDS]
    deep = [(name, grid) for name in DEEP for grid in [(2, 8, 12), (6, 4, 8), (4, 6, 2)]]
    return [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in [*flat, *deep, ("5b_i2v", (3, 8, 12))]]


# Gradients that are 0 by law are rounding in fp32, which differs by processor; fp64 tells them from mistakes. There the
# other side still turns in fp32.
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-6)], ids=["fp32", "fp64"])
@pytest.mark.parametrize(("name", "grid"), cases())
def test_outputs_and_gradients_equal_diffusers(
    name: str, grid: tuple[int, int, int], dtype: torch.dtype, most: float
) -> None:
    transformer = tiny(name).to(dtype)
    config, model = transformer.config, theirs(transformer).to(dtype)
    frames, height, width = grid
    latents = noise(2, frames, config.in_channels, height, width).to(dtype)
    text, t = noise(2, 5, config.text_embed_dim, seed=2).to(dtype), torch.tensor([999, 14])
    ours = transformer(latents, text, t)
    ofs = torch.full((1,), 2.0, dtype=dtype) if config.ofs_embed_dim else None
    positions = their_positions(model, *grid)
    other = model(latents, text, t, ofs=ofs, image_rotary_emb=positions, return_dict=False)[0]
    assert ours.shape == (2, frames, config.out_channels, height, width)
    assert apart(ours, other) < most
    direction = noise(*ours.shape, seed=5).to(dtype) / ours.numel() ** 0.5
    (ours * direction).sum().backward()
    (other * direction).sum().backward()
    mine, reference = gradients(transformer), gradients(model)
    assert mine.keys() == reference.keys() == dict(transformer.named_parameters()).keys()
    for key, gradient in mine.items():
        assert gradient_apart(gradient, reference[key]) < most, key


# diffusers' tables for 1.5 end at the base size; ours go on counting.
@pytest.mark.parametrize(
    ("name", "picture"),
    [
        *(("5b", picture) for picture in [(60, 90), (48, 90), (60, 40), (96, 170), (22, 150), (110, 20), (2, 2)]),
        *(("5b_v1_5", picture) for picture in [(96, 170), (48, 90), (90, 30), (2, 2)]),
    ],
    ids=str,
)
def test_rotary_positions_of_any_size_equal_diffusers(name: str, picture: tuple[int, int]) -> None:
    config = size(name)
    model: Any = SimpleNamespace(config=config)
    cos, sin = their_positions(model, 4, *picture)
    grid = (4 // config.time_patch, picture[0] // 2, picture[1] // 2)
    turns = rotary(config, grid, device=torch.device("cpu"))
    assert apart(turns[..., 0], cos[:, ::2]) < 1e-6
    assert apart(turns[..., 1], sin[:, 1::2]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_compiled_turns_alike(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(2, 5, 3, 8, dtype=dtype), torch.randn(5, 4)
    turns = torch.stack([angles.cos(), angles.sin()], dim=-1).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert rotate(x, turns).dtype == eager.dtype == dtype
    assert apart(rotate(x, turns), eager) < 1e-6


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_the_names_shapes_and_count_of_diffusers(name: str) -> None:
    mend()
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        ours = Transformer(SIZES[name])
        other = CogVideoXTransformer3DModel(**dataclasses.asdict(SIZES[name]))
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in other.state_dict().items()}
    count = sum(parameter.numel() for parameter in ours.parameters())
    published = {"2b": 1_693_783_872, "5b": 5_570_283_072, "5b_v1_5": 5_570_676_352}
    assert count == published.get(name, sum(parameter.numel() for parameter in other.parameters()))


def test_debug_has_about_1_7_million_parameters() -> None:
    assert sum(parameter.numel() for parameter in Transformer(size("debug")).parameters()) == pytest.approx(1.7e6, 0.05)


def test_defaults_are_those_of_diffusers() -> None:
    mend()
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        config = dict(CogVideoXTransformer3DModel().config)
    assert dataclasses.asdict(TransformerConfig()) == {k: v for k, v in config.items() if not k.startswith("_")}


def test_a_new_model_predicts_zero_and_every_part_learns_within_four_steps() -> None:
    torch.manual_seed(0)
    transformer = Transformer(TINY["5b"])
    before = {name: parameter.detach().clone() for name, parameter in transformer.named_parameters()}
    optimiser = torch.optim.Adam(transformer.parameters(), lr=1e-2)
    latents, text, t = noise(2, 3, 4, 8, 12), noise(2, 5, 12, seed=2), torch.tensor([400, 700])
    assert torch.equal(transformer(latents, text, t), torch.zeros_like(latents))
    for _ in range(4):
        optimiser.zero_grad()
        (transformer(latents, text, t) - noise(*latents.shape, seed=3)).square().mean().backward()
        optimiser.step()
    same = [name for name, parameter in transformer.named_parameters() if torch.equal(parameter, before[name])]
    assert same == []


def test_learned_positions_of_fewer_frames_are_the_first_ones() -> None:
    transformer = tiny("5b_i2v")
    latents, text, t = noise(1, 2, 8, 8, 12), noise(1, 5, 12, seed=2), torch.tensor([500])
    first = transformer(latents, text, t)
    with torch.no_grad():  # the last frame of three
        transformer.patch_embed.pos_embedding[:, 5 + 2 * 24 :].add_(1.0)
    assert torch.equal(first, transformer(latents, text, t))
    with torch.no_grad():
        transformer.patch_embed.pos_embedding[:, 5 : 5 + 24].add_(1.0)
    assert not torch.equal(first, transformer(latents, text, t))


@pytest.mark.parametrize(("shape", "words"), [((1, 4, 8, 8, 12), 5), ((1, 3, 8, 8, 8), 5), ((1, 3, 8, 8, 12), 6)])
def test_learned_positions_beyond_those_learned_are_refused(shape: tuple[int, ...], words: int) -> None:
    with pytest.raises(ValueError, match="positions were learned for"):
        tiny("5b_i2v")(noise(*shape), noise(1, words, 12), torch.tensor([5]))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("5b", (1, 1, 4, 7, 8), "not filled by patches"),
        ("5b_v1_5", (1, 3, 4, 8, 8), "fill_front"),
        ("5b_i2v", (1, 3, 4, 8, 12), "latents of 8 channels, not 4"),
    ],
)
def test_latents_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(name)(noise(*shape), noise(1, 5, 12), torch.tensor([5]))


def test_clean_frames_are_modulated_as_at_zero_and_move_the_others() -> None:
    transformer = tiny().double()
    latents, text, t = noise(2, 3, 4, 8, 12).double(), noise(2, 5, 12, seed=2).double(), torch.tensor([999, 300])
    clean = torch.tensor([[True, False, False], [False, False, False]])
    marked, plain = transformer(latents, text, t, clean=clean), transformer(latents, text, t)
    assert apart(marked[0, 0], plain[0, 0]) > 1e-2
    assert apart(marked[0, 1], plain[0, 1]) > 1e-4  # through attention
    assert apart(marked[1], plain[1]) < 1e-14  # products of more rows may round otherwise
    at_zero = transformer(latents, text, torch.tensor([0, 300]))
    everything = transformer(latents, text, torch.tensor([0, 300]), clean=torch.ones(2, 3, dtype=torch.bool))
    assert apart(everything[0], at_zero[0]) < 1e-6


def test_a_patch_of_two_frames_is_clean_when_both_are() -> None:
    transformer = tiny("5b_v1_5")
    latents, text, t = noise(1, 4, 4, 8, 12), noise(1, 5, 12, seed=2), torch.tensor([999])
    plain = transformer(latents, text, t)
    assert apart(plain, transformer(latents, text, t, clean=torch.tensor([[True, False, False, True]]))) < 1e-6
    assert apart(plain, transformer(latents, text, t, clean=torch.tensor([[True, True, False, False]]))) > 1e-2


def test_missing_frames_are_filled_in_front_and_only_in_1_5() -> None:
    latents = noise(2, 3, 4, 2, 2)
    filled, added = fill_front(TINY["5b_v1_5"], latents)
    assert added == 1
    assert torch.equal(filled, torch.cat([latents[:, :1], latents], 1))
    assert fill_front(TINY["5b"], latents)[1] == fill_front(TINY["5b_v1_5"], filled)[1] == 0


@pytest.mark.parametrize("name", ["5b", "5b_v1_5"])
def test_patches_come_back_as_they_were(name: str) -> None:
    latents = noise(2, 4, 4, 6, 10)
    grid = (4 // TINY[name].time_patch, 3, 5)
    assert torch.equal(unpatchify(TINY[name], patchify(TINY[name], latents), grid), latents)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_stay_near_fp32(dtype: torch.dtype) -> None:
    transformer = tiny()
    latents, text, t = noise(1, 3, 4, 8, 12), noise(1, 5, 12, seed=2), torch.tensor([999])
    exact = transformer(latents, text, t)
    other = transformer.to(dtype)(latents.to(dtype), text.to(dtype), t)
    assert other.dtype == dtype
    assert apart(other.to(exact.dtype), exact) < (1e-1 if dtype == torch.bfloat16 else 1e-5)


def test_autocast_trains_fp32_weights_in_bf16() -> None:
    transformer = tiny()
    latents, text, t = noise(1, 3, 4, 8, 12), noise(1, 5, 12, seed=2), torch.tensor([999])
    exact = transformer(latents, text, t)
    with torch.autocast("cpu", torch.bfloat16):
        out = transformer(latents, text, t)
    out.float().square().mean().backward()
    assert apart(out.float(), exact) < 1e-1
    assert all(parameter.grad is not None for parameter in transformer.parameters())


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    latents, text, t = noise(1, 3, 4, 8, 12), noise(1, 5, 12, seed=2), torch.tensor([999])
    plain, saving = tiny(), tiny()
    checkpoint_blocks(saving)
    checkpoint_blocks(saving)  # once is enough
    assert saving.state_dict().keys() == plain.state_dict().keys()
    assert len(blocks(saving)) == 2
    for transformer in (plain, saving):
        transformer(latents, text, t).square().mean().backward()
    mine, reference = gradients(saving), gradients(plain)
    assert all(torch.equal(mine[name], reference[name]) for name in reference)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", ["2b", "5b_i2v", "5b_v1_5_i2v"])
def test_saved_folders_open_here_and_in_diffusers(name: str, shard_bytes: int, tmp_path: Path) -> None:
    mend()
    from diffusers import CogVideoXTransformer3DModel

    transformer = tiny(name)
    transformer.save_pretrained(tmp_path / "transformer", shard_bytes=shard_bytes)
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").exists() == (shard_bytes > 20_000)
    again = Transformer.from_pretrained(tmp_path)  # as that of a pipeline
    assert again.config == transformer.config
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    other, report = CogVideoXTransformer3DModel.from_pretrained(
        tmp_path / "transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(report.values())
    for model in (again, other):
        assert all(torch.equal(value, transformer.state_dict()[key]) for key, value in model.state_dict().items())


def test_folders_of_diffusers_open_here(tmp_path: Path) -> None:
    transformer = tiny("5b_v1_5")
    theirs(transformer).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists()
    again = Transformer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.proj_out.weight.dtype == torch.bfloat16
    assert torch.equal(again.proj_out.weight, transformer.proj_out.weight.bfloat16())


def test_saving_over_another_form_leaves_no_older_weights(tmp_path: Path) -> None:
    tiny(seed=1).save_pretrained(tmp_path)
    tiny(seed=2).save_pretrained(tmp_path, shard_bytes=20_000)
    assert torch.equal(Transformer.from_pretrained(tmp_path).proj_out.weight, tiny(seed=2).proj_out.weight)
    tiny(seed=3).save_pretrained(tmp_path)
    assert torch.equal(Transformer.from_pretrained(tmp_path).proj_out.weight, tiny(seed=3).proj_out.weight)


def _break(folder: Path, how: str) -> None:
    config, file = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "other model":
        config.write_text(json.dumps({"_class_name": "AutoencoderKLCogVideoX"}))
    elif how == "bad json":
        config.write_text("{")
    elif how == "pickle":
        file.rename(folder / "diffusion_pytorch_model.bin")
    elif how == "torn":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "lost shard":
        file.unlink()
        tiny().save_pretrained(folder, shard_bytes=20_000)
        next(folder.glob("*-00002-*")).unlink()
    elif how == "deeper":
        config.write_text(dataclasses.replace(TINY["5b"], num_layers=3).to_json())
    elif how == "wider":
        config.write_text(dataclasses.replace(TINY["5b"], text_embed_dim=13).to_json())
    elif how == "more":
        save_file(tiny().state_dict() | {"surplus": torch.zeros(1)}, file)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no config", "has no config.json"),
        ("other model", "it configures 'AutoencoderKLCogVideoX'"),
        ("bad json", "cannot be read"),
        ("pickle", "is a pickle, which can run code"),
        ("torn", "is damaged"),
        ("lost shard", "lacks diffusion_pytorch_model-00002"),
        ("deeper", "lack transformer_blocks.2"),
        ("wider", "in another shape patch_embed.text_proj.weight"),
        ("more", "have besides surplus"),
    ],
)
def test_damaged_folders_are_named_with_the_fix(how: str, words: str, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    _break(tmp_path, how)
    with pytest.raises(UsageError, match=words) as caught:
        Transformer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        Transformer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_fn": "gelu"}, "not built"),
        ({"dropout": 0.1}, "dropout"),
        ({"attention_head_dim": 24}, "multiple of 16"),
        ({"ofs_embed_dim": 8}, "ofs_embed_dim 8"),
        ({"use_learned_positional_embeddings": True, "use_rotary_positional_embeddings": False}, "has both"),
    ],
)
def test_configurations_that_are_not_built_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(TINY["5b"], **changes)


def test_an_unknown_field_is_warned_of_and_an_unknown_size_named() -> None:
    with pytest.warns(UserWarning, match="'is_novel'"):
        assert TransformerConfig.from_mapping({"is_novel": 1, "_diffusers_version": "0.1"}) == TransformerConfig()
    with pytest.raises(UsageError, match="'5b_v1_5'"):
        size("5b_v15")
