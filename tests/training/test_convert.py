"""Weights from one form to another and back, to the bit; what is written opens where it is meant to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import UsageError
from curation.torchvision import mend
from tests.training.test_sampling import pipeline, tiny_t5, tiny_vae
from tests.training.test_sat import sat_weights
from tests.training.transformer_helpers import TINY, apart, noise, their_positions, theirs, tiny
from training.folders import note_stages
from training.transformer import adapters, sat
from training.transformer.config import SIZES
from training.transformer.convert import REST, convert
from training.transformer.diffusion import Diffusion
from training.transformer.model import Transformer
from training.transformer.models import SAT_VAE, Sources, find, load_vae
from training.vae.model import VAE

ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    same = one.keys() == other.keys()
    return same and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def tiny_lora(*, rank: int = 3, alpha: float = 6.0, modules: tuple[str, ...] = ATTENTION) -> adapters.Lora:
    width, a, b = TINY["5b"].width, {}, {}
    for i in range(TINY["5b"].num_layers):
        for place, module in enumerate(modules):
            name = f"transformer_blocks.{i}.{module}"
            a[name], b[name] = noise(rank, width, seed=10 * i + place), noise(width, rank, seed=50 + 10 * i + place)
    return adapters.Lora(dict(sorted(a.items())), dict(sorted(b.items())), dict.fromkeys(a, alpha))


def same(one: adapters.Lora, other: adapters.Lora) -> bool:
    return equal(dict(one.a), dict(other.a)) and equal(dict(one.b), dict(other.b)) and one.alphas == other.alphas


@pytest.mark.parametrize("name", ["2b", "5b", "5b_i2v", "5b_v1_5_i2v"])
def test_files_of_sat_go_to_diffusers_and_back_to_the_bit(name: str, tmp_path: Path) -> None:
    weights = sat_weights(name) | {"first_stage_model.loss.logvar": torch.ones(())}
    sat.write(tmp_path / "sat", weights)
    (tmp_path / "sat" / "config.json").write_text(TINY[name].to_json())
    folder = convert(tmp_path / "sat", tmp_path / "ours", to="diffusers")
    assert Transformer.from_pretrained(folder, dtype=None).patch_embed.proj.weight.dtype == torch.bfloat16
    assert "first_stage_model.loss.logvar" in load_file(folder / REST)
    file = convert(folder, tmp_path / "again", to="sat")
    assert equal(sat.read(file), weights)


@pytest.mark.parametrize("name", ["2b", "5b", "5b_v1_5"])
def test_ours_goes_to_sat_and_back_to_the_bit(name: str, tmp_path: Path) -> None:
    transformer, diffusion = tiny(name), Diffusion(snr_shift_scale=2.5)
    transformer.save_pretrained(tmp_path / "ours" / "transformer", shard_bytes=4096)
    diffusion.save_pretrained(tmp_path / "ours" / "scheduler")
    convert(tmp_path / "ours", tmp_path / "sat", to="sat")
    folder = convert(tmp_path / "sat", tmp_path / "again", to="diffusers")
    again = Transformer.from_pretrained(folder, dtype=None)
    assert equal(again.state_dict(), transformer.state_dict())
    assert again.config == transformer.config
    assert Diffusion.from_pretrained(folder) == diffusion


def test_what_comes_from_sat_opens_in_diffusers_with_the_same_result(tmp_path: Path) -> None:
    mend()
    from diffusers import CogVideoXTransformer3DModel

    transformer = Transformer(SIZES["debug"])
    with torch.no_grad():
        for number, parameter in enumerate(transformer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=number) * 0.1)
    sat.write(tmp_path / "sat", sat.to_sat(transformer.state_dict(), transformer.config))
    folder = convert(tmp_path / "sat", tmp_path / "ours", to="diffusers")  # the size is known by its shapes
    assert Diffusion.from_pretrained(folder).snr_shift_scale == 1.0  # of models with rotary positions
    other, ours = CogVideoXTransformer3DModel.from_pretrained(folder), Transformer.from_pretrained(folder)
    assert other.config.norm_eps == ours.config.norm_eps == 1e-6  # SAT's
    assert equal(ours.state_dict(), transformer.state_dict())
    latents, text, t = noise(1, 3, 16, 8, 8), noise(1, 32, 128), torch.tensor([500])
    with torch.no_grad():
        expected = other(latents, text, t, image_rotary_emb=their_positions(other, 3, 8, 8)).sample
        assert apart(ours(latents, text, t), expected) < 1e-5


def test_a_vae_goes_to_sat_and_back_to_the_bit(tmp_path: Path) -> None:
    vae = tiny_vae(scaling=0.7).half()
    vae.save_pretrained(tmp_path / "ours" / "vae")
    file = convert(tmp_path / "ours", tmp_path / "sat", to="sat", kind="vae")
    assert file.name == SAT_VAE
    found = torch.load(file, weights_only=True)["state_dict"]
    assert "decoder.up.0.block.0.conv1.conv.weight" in found
    torch.save({"state_dict": found | {"loss.logvar": torch.zeros(())}}, file)
    folder = convert(file, tmp_path / "again", to="diffusers", kind="vae")
    assert VAE.from_pretrained(folder).config == vae.config
    assert equal(load_file(folder / "diffusion_pytorch_model.safetensors"), vae.state_dict())
    last = convert(folder, tmp_path / "last", to="sat", kind="vae")
    assert equal(torch.load(last, weights_only=True)["state_dict"], found | {"loss.logvar": torch.zeros(())})
    other = convert(file, tmp_path / "other", to="diffusers", kind="vae", scaling_factor=0.5)
    assert VAE.from_pretrained(other).config.scaling_factor == 0.5


@pytest.mark.parametrize(
    "way", [("diffusers",), ("peft", "diffusers"), ("sat", "peft"), ("diffusers", "sat", "diffusers")]
)
def test_a_lora_goes_round_to_the_bit_with_its_alpha(way: tuple[str, ...], tmp_path: Path) -> None:
    lora, source = tiny_lora(), tmp_path / "start"
    adapters.write_diffusers(source, lora)
    for number, form in enumerate(way):
        file = convert(source, tmp_path / str(number), to=form, kind="lora")
        source = tmp_path / str(number)
        assert same(adapters.read(source), lora)
        assert same(adapters.read(file), lora)


def test_a_lora_opens_in_diffusers_and_gives_what_it_gives_here(tmp_path: Path) -> None:
    lora, transformer = tiny_lora(), tiny().eval()
    adapters.write_diffusers(tmp_path, lora)
    built = pipeline(transformer, tiny_vae(), tiny_t5(), solver="ddim", diffusion=Diffusion())
    built.load_lora_weights(tmp_path)
    latents, text, t = noise(1, 3, 4, 8, 12), noise(1, 5, 12), torch.tensor([500])
    rotary = built._prepare_rotary_positional_embeddings(64, 96, 3, torch.device("cpu"))
    with torch.no_grad():
        expected = built.transformer(latents, text, t, image_rotary_emb=rotary).sample
        plain = transformer(latents, text, t)
        adapters.add(transformer, adapters.read(tmp_path))
        assert apart(transformer(latents, text, t), expected) < 1e-5
    assert apart(plain, expected) > 1e-3


def test_a_lora_of_diffusers_and_one_of_peft_are_read(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    model = theirs(tiny())
    peft = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    peft.save_pretrained(tmp_path / "peft")
    lora = adapters.read(tmp_path / "peft")
    assert sorted(lora.a) == [f"transformer_blocks.{i}.attn1.to_{kind}" for i in range(2) for kind in "qv"]
    assert set(lora.alphas.values()) == {8.0}
    layers = {name.removeprefix("base_model.model."): x for name, x in get_peft_model_state_dict(peft).items()}
    from diffusers import CogVideoXPipeline

    CogVideoXPipeline.save_lora_weights(tmp_path / "diffusers", transformer_lora_layers=layers)
    other = adapters.read(tmp_path / "diffusers")
    assert equal(dict(other.a), dict(lora.a))
    assert set(other.alphas.values()) == {2.0}  # nothing is said: the rank, as in diffusers
    assert set(adapters.read(tmp_path / "diffusers", alpha=3).alphas.values()) == {3.0}
    ours, merged = tiny(), peft.merge_and_unload().state_dict()
    adapters.add(ours, lora)
    assert all(apart(value, merged[name]) < 1e-6 for name, value in ours.state_dict().items())


def test_alphas_and_ranks_of_single_layers_are_kept(tmp_path: Path) -> None:
    lora = tiny_lora()
    first = next(iter(lora.a))
    a, b = dict(lora.a), dict(lora.b)
    a[first], b[first] = a[first][:2].clone(), b[first][:, :2].clone()
    lora = adapters.Lora(a, b, {**lora.alphas, first: 1.0})
    for write in (adapters.write_diffusers, adapters.write_peft, adapters.write_sat):
        write(tmp_path / write.__name__, lora)
        assert same(adapters.read(tmp_path / write.__name__), lora)


def test_the_lora_of_a_whole_checkpoint_of_sat_is_found_in_it(tmp_path: Path) -> None:
    adapters.write_sat(tmp_path / "lora", tiny_lora())
    named = sat.read(adapters.find(tmp_path / "lora"))
    name = sat.PREFIX + "transformer.layers.1.attention.query_key_value.matrix_B.2"
    assert torch.equal(named[name], tiny_lora().b["transformer_blocks.1.attn1.to_v"])
    sat.write(tmp_path / "whole", sat_weights("5b") | named)
    assert set(adapters.read(tmp_path / "whole").alphas.values()) == {1.0}  # SAT's own default
    assert equal(dict(adapters.read(tmp_path / "whole").a), dict(tiny_lora().a))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"to": "onnx"}, r"--to onnx: a transformer has no such form"),
        ({"to": "peft"}, r"a transformer has no such form"),
        ({"to": "diffusers"}, r"is no SAT checkpoint"),
        ({"source": "absent"}, r"there is no absent"),
        ({"target": "ours"}, r"holds something already"),
        ({"kind": "vae"}, r"has no config.json|no configuration of a vae"),
        ({"kind": "lora"}, r"no LoRA in"),
        ({"kind": "vae", "to": "diffusers"}, r"holds 0 files of SAT"),
        ({"source": "sat"}, r"in the form of SAT already"),
        ({"source": "torn", "to": "diffusers"}, r"latest names 'x', and there is no"),
    ],
)
def test_wrong_requests_are_refused(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("ours")
    sat.write("sat", sat_weights("5b"))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "latest").write_text("x")
    asked = {"source": "ours", "target": "new", "to": "sat"} | changes
    with pytest.raises(UsageError, match=says):
        convert(asked.pop("source"), asked.pop("target"), **asked)
    assert not (tmp_path / "new").exists()


def test_loras_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SAT joins"):
        adapters.write_sat(tmp_path, tiny_lora(modules=("attn1.to_q",)))
    with pytest.raises(UsageError, match=r"no LoRA for transformer_blocks\.0\.norm1\.linear"):
        adapters.write_sat(tmp_path, tiny_lora(modules=("norm1.linear",)))
    with pytest.raises(UsageError, match="of another transformer"):
        adapters.add(tiny("2b"), tiny_lora(modules=("attn9.to_q",)))
    file = adapters.write_diffusers(tmp_path / "bad", tiny_lora())
    tensors = load_file(file)
    save_file({name: x for name, x in tensors.items() if "0.attn1.to_q.lora_A" not in name}, file)
    with pytest.raises(UsageError, match="only one part"):
        adapters.read(file)
    save_file({"x": torch.ones(1)}, file)
    with pytest.raises(UsageError, match="no LoRA of a linear layer"):
        adapters.read(file)
    file.write_bytes(b"torn")
    with pytest.raises(UsageError, match="is damaged"):
        adapters.read(file)
    adapters.write_peft(tmp_path / "dora", tiny_lora())
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(UsageError, match="use_dora, which is not built"):
        adapters.read(tmp_path / "dora")


def test_the_command_converts_and_says_what_next(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "ours")
    words = ["convert", str(tmp_path / "ours"), str(tmp_path / "sat"), "--to", "sat"]
    staged = tmp_path / "trained" / "high" / "weights"
    shutil.copytree(tmp_path / "ours", staged / "transformer")
    note_stages(tmp_path / "trained", ["low", "high"])
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "trained"), str(tmp_path / "staged"), "--to", "sat"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"Next: cutroom sample PROMPT --model {tmp_path / 'sat'}" in done.stdout
    words[2] = str(tmp_path / "other")
    said = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert Path(said["written"]).is_file()
    assert isinstance(CliRunner().invoke(app, [*words, "--vae", "--lora"]).exception, UsageError)
    tiny_vae().save_pretrained(tmp_path / "vae")
    vae = CliRunner().invoke(app, ["convert", str(tmp_path / "vae"), str(tmp_path / "satvae"), "--to", "sat", "--vae"])
    assert f"--model MODEL --vae {tmp_path / 'satvae' / SAT_VAE}" in vae.stdout
    config = find(Sources(model=str(tmp_path / "ours"), vae=str(tmp_path / "satvae"), snr_shift=1.0), needs_text=False)
    assert config.vae.name == SAT_VAE
    one = load_vae(config.vae, config.vae_config, dtype=torch.float32).state_dict()
    assert equal(one, tiny_vae().state_dict())
