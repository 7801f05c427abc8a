"""Weights of SAT to ours and back, to the bit; and that they are the right ones, by a small model in SAT's form."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from curation.errors import UsageError
from tests.training.transformer_helpers import TINY, noise, tiny
from training.transformer.config import SIZES, TransformerConfig
from training.transformer.model import Transformer
from training.transformer.sat import PREFIX, from_sat, read, size_of, to_sat, vae_from_sat, vae_to_sat, write
from training.vae import config as vae_config
from training.vae.model import VAE


def sat_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a SAT checkpoint, from its repository and not from our converter."""
    width, time, head = config.width, config.time_embed_dim, config.attention_head_dim
    patch = config.patch_channels
    flat = (width, config.in_channels, 2, 2)
    shapes: dict[str, tuple[int, ...]] = {
        "time_embed.0.weight": (time, width),
        "time_embed.2.weight": (time, time),
        "transformer.final_layernorm.weight": (width,),
        "mixins.patch_embed.proj.weight": flat if config.patch_size_t is None else (width, patch * config.in_channels),
        "mixins.patch_embed.text_proj.weight": (width, config.text_embed_dim),
        "mixins.final_layer.norm_final.weight": (width,),
        "mixins.final_layer.linear.weight": (patch * config.out_channels, width),
        "mixins.final_layer.adaLN_modulation.1.weight": (2 * width, time),
    }
    if config.ofs_embed_dim:
        shapes |= {f"ofs_embed.{place}.weight": (time, time) for place in (0, 2)}
    for i in range(config.num_layers):
        layer = f"transformer.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (width,),
            layer + "post_attention_layernorm.weight": (width,),
            layer + "attention.query_key_value.weight": (3 * width, width),
            layer + "attention.dense.weight": (width, width),
            layer + "mlp.dense_h_to_4h.weight": (4 * width, width),
            layer + "mlp.dense_4h_to_h.weight": (width, 4 * width),
            f"mixins.adaln_layer.adaLN_modulations.{i}.1.weight": (12 * width, time),
            f"mixins.adaln_layer.query_layernorm_list.{i}.weight": (head,),
            f"mixins.adaln_layer.key_layernorm_list.{i}.weight": (head,),
        }
    shapes |= {name.replace(".weight", ".bias"): (shape[0],) for name, shape in shapes.items()}
    if config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings:
        frames, height, w = config.sample_grid
        shapes["mixins.pos_embed.pos_embedding"] = (1, config.max_text_seq_length + frames * height * w, width)
    else:
        shapes["mixins.pos_embed.freqs_cos"] = (*config.sample_grid, head)
    return {PREFIX + name: shape for name, shape in shapes.items()}


def sat_weights(name: str) -> dict[str, Tensor]:
    shapes = sat_shapes(TINY[name])
    return {key: noise(*shape, seed=i).bfloat16() for i, (key, shape) in enumerate(sorted(shapes.items()))}


@pytest.mark.parametrize("name", TINY)
def test_sat_to_ours_to_sat_is_equal_to_the_bit(name: str) -> None:
    sat, config = sat_weights(name), TINY[name]
    state, rest = from_sat(sat, config)
    wanted = Transformer(config).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}
    tables = {"mixins.pos_embed.freqs_cos", "mixins.pos_embed.pos_embedding"}
    assert {key.removeprefix(PREFIX) for key in rest} <= tables
    again = to_sat(state, config, rest=rest)
    assert again.keys() == sat.keys()
    assert all(torch.equal(again[key], sat[key]) and again[key].dtype == sat[key].dtype for key in sat)


@pytest.mark.parametrize("name", TINY)
def test_ours_to_sat_to_ours_is_equal_to_the_bit(name: str) -> None:
    state = tiny(name).state_dict()
    again, _ = from_sat(to_sat(state, TINY[name]), TINY[name])
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_joined_tensors_are_cut_where_sat_joins_them() -> None:
    sat, config = sat_weights("5b"), TINY["5b"]
    state, _ = from_sat(sat, config)
    width = config.width
    joined = sat[PREFIX + "transformer.layers.1.attention.query_key_value.weight"]
    assert torch.equal(state["transformer_blocks.1.attn1.to_k.weight"], joined[width : 2 * width])
    modulation = sat[PREFIX + "mixins.adaln_layer.adaLN_modulations.0.1.bias"].view(12, width)
    # SAT: shift, scale, gate of attention, of the feed-forward; then the same for text. Ours: video, then text.
    assert torch.equal(state["transformer_blocks.0.norm1.linear.bias"].view(6, width), modulation[[0, 1, 2, 6, 7, 8]])
    assert torch.equal(state["transformer_blocks.0.norm2.linear.bias"].view(6, width), modulation[[3, 4, 5, 9, 10, 11]])


def test_the_table_that_2b_wants_is_made_anew_where_it_is_not_kept() -> None:
    from tests.training.transformer_helpers import theirs

    transformer = tiny("2b")
    table = to_sat(transformer.state_dict(), TINY["2b"])[PREFIX + "mixins.pos_embed.pos_embedding"]
    expected = theirs(transformer).patch_embed.pos_embedding.float()
    assert torch.allclose(table, expected, atol=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_known_by_their_shapes(name: str) -> None:
    sat = {key: torch.empty(shape, device="meta") for key, shape in sat_shapes(SIZES[name]).items()}
    assert size_of(sat) == name


def test_unknown_sizes_and_missing_tensors_are_named() -> None:
    sat = sat_weights("5b")
    with pytest.raises(UsageError, match=r"of 2 layers .* are of no known size"):
        size_of(sat)
    with pytest.raises(UsageError, match=r"lack model\.diffusion_model\.transformer\.layers\.2"):
        from_sat(sat, dataclasses.replace(TINY["5b"], num_layers=3))


def test_files_of_sat_are_read_and_written_without_running_code(tmp_path: Path) -> None:
    sat = sat_weights("5b")
    file = write(tmp_path, sat)
    assert (tmp_path / "latest").read_text() == "1"
    again = read(file)
    assert all(torch.equal(again[key], sat[key]) for key in sat)
    torch.save({"module": sat, "args": argparse.Namespace(layers=2)}, file)
    assert read(file).keys() == sat.keys()
    torch.save({"module": sat, "trap": Path("x")}, file)
    with pytest.raises(UsageError, match="cannot be read as SAT weights"):
        read(file)
    torch.save([1], file)
    with pytest.raises(UsageError, match="holds no tensors"):
        read(file)


def test_the_vae_goes_to_sat_and_back() -> None:
    vae = VAE(vae_config.size("debug"))
    state = vae.state_dict()
    sat = vae_to_sat(state, rest={"loss.logvar": torch.zeros(())})
    assert "decoder.up.3.block.0.conv1.conv.weight" in sat
    assert torch.equal(
        sat["decoder.up.3.block.0.conv1.conv.weight"], state["decoder.up_blocks.0.resnets.0.conv1.conv.weight"]
    )
    assert "encoder.down.0.downsample.conv.weight" in sat
    assert "decoder.mid.block_2.norm1.conv_y.conv.weight" in sat
    assert "encoder.down.1.block.0.nin_shortcut.weight" in sat
    assert not [name for name in sat if "resnets" in name or "_blocks" in name]
    again, rest = vae_from_sat(sat)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert list(rest) == ["loss.logvar"]
    assert vae_to_sat(again, rest=rest).keys() == sat.keys()
    with pytest.raises(UsageError, match="the VAE's own file"):
        vae_from_sat({})
