"""Weights of SwissArmyTransformer, in which CogVideoX was trained and is published beside diffusers' form.

    sat = read("cogvideox-5b-sat/transformer/1/mp_rank_00_model_states.pt")
    config = SIZES[size_of(sat)]
    state, rest = from_sat(sat, config)      # names of diffusers and ours
    sat == to_sat(state, config, rest=rest)  # to the bit

Nothing is computed: tensors are renamed, cut and joined. SAT normalises with eps 1e-6 where diffusers (and so we) have
1e-5, and its rotary positions count where diffusers' scale to the base size: results agree at that size only, closely.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from curation.errors import UsageError
from curation.files import aside
from training.transformer.config import SIZES, TransformerConfig
from training.transformer.positions import sinusoidal

PREFIX = "model.diffusion_model."
_POSITIONS = "mixins.pos_embed.pos_embedding"

_BLOCK = {
    "norm1.norm": "transformer.layers.{i}.input_layernorm",
    "norm2.norm": "transformer.layers.{i}.post_attention_layernorm",
    "attn1.to_out.0": "transformer.layers.{i}.attention.dense",
    "attn1.norm_q": "mixins.adaln_layer.query_layernorm_list.{i}",
    "attn1.norm_k": "mixins.adaln_layer.key_layernorm_list.{i}",
    "ff.net.0.proj": "transformer.layers.{i}.mlp.dense_h_to_4h",
    "ff.net.2": "transformer.layers.{i}.mlp.dense_4h_to_h",
}
_REST = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "ofs_embedding.linear_1": "ofs_embed.0",
    "ofs_embedding.linear_2": "ofs_embed.2",
    "patch_embed.proj": "mixins.patch_embed.proj",
    "patch_embed.text_proj": "mixins.patch_embed.text_proj",
    "norm_final": "transformer.final_layernorm",
    "norm_out.norm": "mixins.final_layer.norm_final",
    "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
    "proj_out": "mixins.final_layer.linear",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_NORMS = ("norm1.linear", "norm2.linear")
# SAT has shift, scale, gate of attention, then of the feed-forward; first for video, then for text.
_MODULATIONS = ((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11))


def from_sat(sat: Mapping[str, Tensor], config: TransformerConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a transformer by our names, and what SAT has besides (tables, other models) by its own.

    Raises UsageError where SAT's lacks a tensor of ``config``.
    """
    left = dict(sat)
    state: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if PREFIX + name not in left:
            raise UsageError(
                f"the SAT weights lack {PREFIX + name}, which {config.num_layers} layers of {config.width} channels "
                "have: they are of another size, or no CogVideoX"
            )
        return left.pop(PREFIX + name)

    for ours, theirs in _names(config):
        state[ours] = take(theirs)
    for i in range(config.num_layers):
        for kind in ("weight", "bias"):
            if kind == "weight" or config.attention_bias:
                joined = take(f"transformer.layers.{i}.attention.query_key_value.{kind}")
                for name, part in zip(_QKV, joined.chunk(3), strict=True):
                    state[f"transformer_blocks.{i}.{name}.{kind}"] = part.clone()  # files cannot hold shared memory
            parts = take(f"mixins.adaln_layer.adaLN_modulations.{i}.1.{kind}").chunk(12)
            for name, places in zip(_NORMS, _MODULATIONS, strict=True):
                state[f"transformer_blocks.{i}.{name}.{kind}"] = torch.cat([parts[place] for place in places])
    return state, left


def to_sat(
    state: Mapping[str, Tensor], config: TransformerConfig, *, rest: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Undo ``from_sat``. Without ``rest`` the table of positions that SAT's 2b wants to find is made anew."""
    sat = {PREFIX + theirs: state[ours] for ours, theirs in _names(config)}
    for i in range(config.num_layers):
        block = f"transformer_blocks.{i}."
        for kind in ("weight", "bias"):
            if kind == "weight" or config.attention_bias:
                joined = torch.cat([state[f"{block}{name}.{kind}"] for name in _QKV])
                sat[f"{PREFIX}transformer.layers.{i}.attention.query_key_value.{kind}"] = joined
            parts: dict[int, Tensor] = {}
            for name, places in zip(_NORMS, _MODULATIONS, strict=True):
                parts |= dict(zip(places, state[f"{block}{name}.{kind}"].chunk(6), strict=True))
            sat[f"{PREFIX}mixins.adaln_layer.adaLN_modulations.{i}.1.{kind}"] = torch.cat(
                [parts[place] for place in range(12)]
            )
    if rest is not None:
        sat.update(rest)
    elif not config.use_rotary_positional_embeddings:
        like = state["patch_embed.text_proj.weight"]
        words = torch.zeros(config.max_text_seq_length, config.width, dtype=torch.float32, device=like.device)
        video = sinusoidal(config, config.sample_grid, device=like.device, dtype=torch.float32)
        sat[PREFIX + _POSITIONS] = torch.cat([words, video])[None].to(like.dtype)
    return sat


def _names(config: TransformerConfig) -> Iterator[tuple[str, str]]:
    """Our name and SAT's of every tensor that is the same in both."""
    for i in range(config.num_layers):
        for ours, theirs in _BLOCK.items():
            if ours.startswith("norm") and not config.norm_elementwise_affine:
                continue
            for kind in ("weight", "bias"):
                yield f"transformer_blocks.{i}.{ours}.{kind}", f"{theirs.format(i=i)}.{kind}"
    absent = set() if config.ofs_embed_dim else {"ofs_embedding.linear_1", "ofs_embedding.linear_2"}
    if not config.norm_elementwise_affine:
        absent |= {"norm_final", "norm_out.norm"}
    for ours, theirs in _REST.items():
        if ours in absent:
            continue
        flat = ours == "patch_embed.proj" and config.patch_size_t is None and not config.patch_bias
        for kind in ("weight",) if flat else ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"
    if config.use_learned_positional_embeddings:
        yield "patch_embed.pos_embedding", _POSITIONS


def size_of(sat: Mapping[str, Tensor]) -> str:
    """Which of the published sizes (see ``config.SIZES``) the weights have; UsageError if none."""
    layers = sum(name.startswith(PREFIX + "transformer.layers.") and name.endswith("_to_4h.weight") for name in sat)
    projection = sat.get(PREFIX + "mixins.patch_embed.proj.weight")
    found = None if projection is None else tuple(projection.shape)
    for name, config in SIZES.items():
        patch = (config.patch_size,) * 2
        flat = (config.width, config.in_channels, *patch)
        deep = (config.width, config.in_channels * config.patch_channels)
        if layers == config.num_layers and found == (flat if config.patch_size_t is None else deep):
            return name
    raise UsageError(
        f"SAT weights of {layers} layers with patches {found} are of no known size ({', '.join(SIZES)}); "
        "state the configuration"
    )


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors in a SAT checkpoint (``.pt``), by name. Code in the pickle is not run.

    Raises UsageError if it cannot be read so.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # SAT stores its arguments beside the weights
            held = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UsageError(f"{file} cannot be read as SAT weights: {error}") from error
    for key in ("model", "module", "state_dict"):
        if isinstance(held, dict) and key in held:
            held = held[key]
    items = held.items() if isinstance(held, dict) else ()
    tensors = {name: value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"{file} holds no tensors by name; give the mp_rank_00_model_states.pt of a SAT folder")
    return tensors


def write(folder: str | Path, sat: Mapping[str, Tensor]) -> Path:
    """Write a folder that SAT loads: ``latest`` and ``1/mp_rank_00_model_states.pt``, whose path is returned."""
    file = Path(folder, "1", "mp_rank_00_model_states.pt")
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as other:
        torch.save({"module": {name: tensor.detach().cpu() for name, tensor in sat.items()}}, other)
    with aside(Path(folder, "latest")) as other:
        other.write_text("1", encoding="utf-8")
    return file


# SAT's names and ours; a number stands for {}.
_VAE = (
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("down.{}.block", "down_blocks.{}.resnets"),
    ("down.{}.downsample", "down_blocks.{}.downsamplers.0"),
    ("up.{}.block", "up_blocks.{}.resnets"),
    ("up.{}.upsample", "up_blocks.{}.upsamplers.0"),
    ("nin_shortcut", "conv_shortcut"),
)


def vae_from_sat(sat: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the VAE by our names, from a VAE's own file, and what SAT has besides (of its losses)."""
    rest = {name: tensor for name, tensor in sat.items() if not name.startswith(("encoder.", "decoder."))}
    levels = _levels(sat, r"encoder\.down\.(\d+)\.")
    state = {_renamed(name, _VAE, levels): tensor for name, tensor in sat.items() if name not in rest}
    return state, rest


def vae_to_sat(state: Mapping[str, Tensor], *, rest: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Undo ``vae_from_sat``."""
    levels = _levels(state, r"encoder\.down_blocks\.(\d+)\.")
    back = tuple((ours, theirs) for theirs, ours in _VAE)
    return {_renamed(name, back, levels): tensor for name, tensor in state.items()} | dict(rest or {})


def _levels(names: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in names if (match := re.search(pattern, name))]
    if not found:
        raise UsageError("these weights have no blocks of a VAE's encoder; give the VAE's own file")
    return max(found) + 1


def _renamed(name: str, rules: tuple[tuple[str, str], ...], levels: int) -> str:
    for before, after in rules:
        pattern = r"(?<=\.)" + re.escape(before).replace(r"\{\}", r"(\d+)") + r"(?=\.)"
        name = re.sub(pattern, after.replace("{}", r"\1"), name)
    # SAT counts the blocks of the decoder backwards.
    return re.sub(r"(?<=\.)(up|up_blocks)\.(\d+)", lambda found: f"{found[1]}.{levels - 1 - int(found[2])}", name)
