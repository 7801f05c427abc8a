"""Whole pipelines of diffusers against ours with the same tiny random weights; and what sampling promises besides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from curation.errors import UsageError
from curation.torchvision import mend
from tests.training import vae_helpers
from tests.training.transformer_helpers import TINY, apart, noise, theirs, tiny
from training.transformer.diffusion import Diffusion
from training.transformer.extend import Shape, Window, make
from training.transformer.model import Transformer
from training.transformer.models import Models
from training.transformer.sampling import Draws, Sampling, decode, denoise, scaled, scaled_image, unscaled
from training.transformer.text import TextEncoder
from training.vae.config import Chunks, VAEConfig
from training.vae.model import VAE

WORDS = ["a", "red", "ball", "rolls", "left", "blue", "sky"]


def tiny_vae(*, scaling: float = 0.7, invert: bool = False) -> VAE:
    config = dataclasses.replace(
        vae_helpers.TINY, latent_channels=4, scaling_factor=scaling, invert_scale_latents=invert
    )
    return vae_helpers.tiny(config=config).eval()


def tiny_t5(tokens: int = 5) -> TextEncoder:
    mend()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(vocabulary), d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2)
    return TextEncoder(fast, T5EncoderModel(config), tokens=tokens)


def pipeline(transformer: Transformer, vae: VAE, encoder: TextEncoder, *, solver: str, diffusion: Diffusion) -> Any:
    mend()
    import diffusers

    reads_image = transformer.config.reads_image
    cls = diffusers.CogVideoXImageToVideoPipeline if reads_image else diffusers.CogVideoXPipeline
    scheduler = {"ddim": diffusers.CogVideoXDDIMScheduler, "dpm": diffusers.CogVideoXDPMScheduler}[solver]
    built = cls(
        tokenizer=encoder.tokenizer,
        text_encoder=encoder.encoder,
        vae=vae_helpers.theirs(vae).eval(),
        transformer=theirs(transformer).eval(),
        scheduler=scheduler(
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            snr_shift_scale=diffusion.snr_shift_scale,
        ),
    )
    built.set_progress_bar_config(disable=True)
    return built


@pytest.mark.parametrize(
    ("name", "solver", "course", "scaling", "picture"),
    [
        ("2b", "ddim", "constant", 1.15258426, (64, 96)),
        ("2b", "dpm", "dynamic_diffusers", 1.15258426, (32, 64)),
        ("5b", "dpm", "constant", 0.7, (64, 96)),
        ("5b", "ddim", "dynamic_diffusers", 0.7, (96, 48)),
        ("5b_i2v", "dpm", "constant", 0.7, (64, 96)),
        ("5b_v1_5", "dpm", "constant", 0.7, (64, 80)),
        ("5b_v1_5_i2v", "dpm", "constant", 0.7, (64, 80)),
    ],
)
def test_whole_pipelines_equal_diffusers_frame_for_frame(
    name: str, solver: str, course: str, scaling: float, picture: tuple[int, int]
) -> None:
    transformer, encoder = tiny(name).eval(), tiny_t5()
    vae = tiny_vae(scaling=scaling, invert=name == "5b_v1_5_i2v")
    diffusion = Diffusion(snr_shift_scale=3.0 if name == "2b" else 1.0)
    height, width = picture
    text = ["a red ball left", "blue sky"]
    image = None
    more: dict[str, Any] = {}
    if name.endswith("i2v"):
        image = vae_helpers.video(2, 3, height, width)
        more["image"] = image / 2 + 0.5
    other = pipeline(transformer, vae, encoder, solver=solver, diffusion=diffusion)(
        prompt_embeds=encoder(text),
        negative_prompt_embeds=torch.zeros_like(encoder(text)),
        height=height,
        width=width,
        num_frames=9,
        num_inference_steps=5,
        guidance_scale=6.0,
        use_dynamic_cfg=course != "constant",
        generator=[torch.Generator().manual_seed(seed) for seed in (11, 5)],
        output_type="pt",
        max_sequence_length=5,
        **more,
    ).frames  # (B, T, C, H, W) in 0..1
    ours = make(
        Models(transformer, vae, diffusion, torch.device("cpu")),
        encoder(text),
        windows=[Window(9)],
        shape=Shape(height=height, width=width),
        seeds=[11, 5],
        settings=Sampling(steps=5, solver=solver, guidance=6.0, course=course),
        image=image,
    )
    assert ours.shape == (2, 3, 9, height, width)
    inside = ours.abs() < 1
    assert inside.float().mean() > 0.5  # else clamping hides what differs
    assert float((ours.transpose(1, 2) / 2 + 0.5 - other).abs().max()) < 1e-4


def test_embeddings_equal_those_of_the_pipeline() -> None:
    encoder = tiny_t5()
    built = pipeline(tiny(), tiny_vae(), encoder, solver="ddim", diffusion=Diffusion())
    expected, _ = built.encode_prompt(["blue sky", "a ball"], None, False, max_sequence_length=5)
    assert torch.equal(encoder(["blue sky", "a ball"]), expected)
    assert encoder.count(["blue sky", "a"]) == [3, 2]


def test_texts_that_are_cut_are_warned_of() -> None:
    encoder = tiny_t5()
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 5 tokens"):
        assert encoder(["a red ball rolls left", "a"]).shape == (2, 5, 12)


def test_text_encoders_load_from_their_folder_and_from_a_pipeline(tmp_path: Path) -> None:
    encoder = tiny_t5()
    for part in (tmp_path / "one", tmp_path / "pipeline" / "tokenizer"):
        encoder.tokenizer.save_pretrained(part)
    for part in (tmp_path / "one", tmp_path / "pipeline" / "text_encoder"):
        encoder.encoder.save_pretrained(part)
    for folder in (tmp_path / "one", tmp_path / "pipeline"):
        again = TextEncoder.from_pretrained(folder, tokens=5)
        assert torch.equal(again(["a red ball"]), encoder(["a red ball"]))
    with pytest.raises(UsageError, match="give the folder of a CogVideoX pipeline"):
        TextEncoder.from_pretrained(tmp_path)


def made(transformer: Transformer, text: Tensor, vae: VAE | None = None, **changes: Any) -> Tensor:
    models = Models(transformer, vae or tiny_vae(), Diffusion(), torch.device("cpu"))
    shape, seeds = Shape(height=64, width=64), range(len(text))
    settings = {"windows": [Window(9)], "shape": shape, "seeds": seeds, "settings": Sampling(steps=3)}
    return make(models, text, **(settings | changes))


def test_a_seed_gives_its_sample_in_any_company() -> None:
    transformer, text = tiny().eval(), noise(3, 5, 12)
    together, alone = made(transformer, text, seeds=[4, 8, 6]), made(transformer, text[1:2], seeds=[8])
    assert apart(together[1:2], alone) < 1e-4
    assert apart(made(transformer, text[1:2], seeds=[9]), alone) > 1e-2
    assert torch.equal(made(transformer, text[1:2], seeds=[8]), alone)


def test_guidance_of_one_is_the_text_alone_and_more_moves_away_from_no_text() -> None:
    transformer, text = tiny().eval(), noise(1, 5, 12)
    plain = made(transformer, text, settings=Sampling(steps=3, guidance=1.0))
    nearly = made(transformer, text, settings=Sampling(steps=3, guidance=1.0001))
    assert apart(plain, nearly) < 1e-2
    same = made(transformer, text, settings=Sampling(steps=3, guidance=6.0), negative=text)
    assert apart(plain, same) < 1e-4  # nothing to move away from
    assert apart(made(transformer, text), plain) > 1e-2


def test_bf16_stays_near_fp32() -> None:
    text = noise(1, 5, 12)
    exact = made(tiny().eval(), text)
    rough = made(tiny(dtype=torch.bfloat16).eval(), text, tiny_vae().bfloat16())
    assert rough.dtype == torch.float32
    assert float((rough - exact).abs().mean()) < 0.1


@pytest.mark.parametrize("name", ["5b", "5b_v1_5"])
def test_given_frames_stay_as_they_are_and_steer_the_others(name: str) -> None:
    transformer, text = tiny(name).eval(), noise(2, 5, 12)
    given = noise(2, 3, 4, 8, 8, seed=7)
    clean = torch.tensor([[True, False, True], [False, False, False]])
    common: dict[str, Any] = {"shape": (3, 8, 8), "diffusion": Diffusion(), "settings": Sampling(steps=3)}
    free = denoise(transformer, text, draws=Draws([0, 1]), **common)
    kept = denoise(transformer, text, draws=Draws([0, 1]), given=given, clean=clean, **common)
    assert torch.equal(kept[clean], given[clean])
    assert apart(kept[0, 1], free[0, 1]) > 1e-2
    assert apart(kept[1], free[1]) < 1e-4
    others = denoise(transformer, text, draws=Draws([0, 1]), given=given + 2, clean=clean, **common)
    assert apart(others[0, 1], kept[0, 1]) > 1e-2  # the transformer sees them
    with pytest.raises(ValueError, match="come together"):
        denoise(transformer, text, draws=Draws([0, 1]), given=given, **common)


def test_each_step_is_told() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    made(tiny("5b_v1_5").eval(), noise(1, 5, 12), each=lambda index, x: seen.append((index, tuple(x.shape))))
    assert seen == [(index, (1, 3, 4, 8, 8)) for index in range(3)]


def test_scaling_is_applied_once_and_inverted_for_pictures_of_1_5() -> None:
    z = noise(1, 4, 3, 2, 2)
    plain, inverted = VAEConfig(scaling_factor=0.7), VAEConfig(scaling_factor=0.7, invert_scale_latents=True)
    assert torch.allclose(scaled(z, inverted), 0.7 * z.transpose(1, 2))
    assert torch.allclose(unscaled(scaled(z, plain), plain), z)
    assert torch.allclose(scaled_image(z, plain), 0.7 * z.transpose(1, 2))
    assert torch.allclose(scaled_image(z, inverted), z.transpose(1, 2) / 0.7)


def test_decoding_is_that_of_the_vae_in_chunks_and_whole() -> None:
    vae, z = tiny_vae(), noise(1, 4, 5, 2, 2)
    with torch.no_grad():
        for chunks in (Chunks(), None):
            expected = vae.decode(z, chunks=chunks).clamp(-1, 1)
            assert apart(decode(vae, scaled(z, vae.config), chunks=chunks), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("5b", {"windows": [Window(10)]}, "10 frames are not 4k\\+1; 9 are"),
        ("5b", {"shape": Shape(height=72, width=64)}, "72x64 is not made of 16x16; 64x64 is"),
        ("5b", {"image": torch.zeros(1, 3, 64, 64)}, "reads no picture"),
        ("5b_i2v", {}, "give one as image"),
        ("5b_i2v", {"image": torch.zeros(1, 3, 64, 96)}, "is asked for"),
        ("5b", {"seeds": [1, 2]}, "2 seeds for 1 texts"),
        ("5b", {"settings": Sampling(solver="euler")}, "no solver 'euler'"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(tiny(name), torch.zeros(1, 5, TINY[name].text_embed_dim), **changes)
