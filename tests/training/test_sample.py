"""``cutroom sample``: from a pipeline's folder to files; what is made is what diffusers makes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import UsageError
from curation.video import Video
from tests.training.test_convert import tiny_lora
from tests.training.test_sampling import pipeline, tiny_t5, tiny_vae
from tests.training.transformer_helpers import tiny
from training.pictures import write_picture
from training.transformer import adapters, embeddings, sat
from training.transformer.config import SIZES
from training.transformer.diffusion import Diffusion
from training.transformer.given import Given
from training.transformer.models import Models, Sources, choose, load
from training.transformer.produce import Made, embedded, make_one, run
from training.transformer.requests import Prepared, Request, prepare, size_of
from training.transformer.sampling import Sampling

FAST = Sampling(steps=3)


def saved(folder: Path, name: str = "5b") -> Path:
    """A pipeline as diffusers saves it, with tiny random weights."""
    diffusion = Diffusion(snr_shift_scale=1.0)
    built = pipeline(tiny(name).eval(), tiny_vae(), tiny_t5(), solver="dpm", diffusion=diffusion)
    built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def i2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline-i2v"), "5b_i2v")


def asked(model: Path, *prompts: str, **changes: Any) -> Request:
    common = {"sources": Sources(model=str(model)), "prompts": prompts or ("a red ball",), "settings": FAST}
    return Request(**(common | changes))


def first_video(prepared: Prepared) -> torch.Tensor:
    models = load(prepared.places, dtype=prepared.dtype, device=prepared.device, offload=prepared.request.offload)
    return make_one(models, prepared, prepared.jobs[0], embedded(prepared, [prepared.jobs[0].prompt]))


def their_frames(pipeline: Any, prompt: str) -> torch.Tensor:
    """What a pipeline of diffusers makes (9, 3, 64, 96) in 0..1, in three steps, with the zero text to go away from."""
    text, _ = pipeline.encode_prompt([prompt], None, False, max_sequence_length=5)
    made = pipeline(
        prompt_embeds=text,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=6.0,
        negative_prompt_embeds=torch.zeros_like(text),
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
        max_sequence_length=5,
    )
    return made.frames[0]


def picture(file: Path, *, height: int = 64, width: int = 96, value: int = 90) -> Path:
    frame = np.full((height, width, 3), value, np.uint8)
    frame[: height // 2, :, 0] = 220
    write_picture(file, frame)
    return file


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cutroom(*words: object) -> Any:
    return CliRunner().invoke(app, ["sample", *map(str, words)])


def test_a_sample_is_that_of_the_pipeline_of_diffusers(model: Path) -> None:
    from curation.torchvision import mend

    mend()
    import diffusers

    built = diffusers.CogVideoXPipeline.from_pretrained(model)
    built.scheduler = diffusers.CogVideoXDPMScheduler.from_config(built.scheduler.config)
    built.set_progress_bar_config(disable=True)
    frames = their_frames(built, "a red ball")
    ours = first_video(prepare(asked(model, seed=7)))
    assert ours.shape == (3, 9, 64, 96)
    assert float((ours.transpose(0, 1) / 2 + 0.5 - frames).abs().max()) < 1e-4


def test_files_say_what_was_asked_and_are_made_once(model: Path, tmp_path: Path) -> None:
    request = asked(model, "A red  ball!", "blue sky", samples=2, seed=3)
    made = list(run(prepare(request), tmp_path))
    assert [(one.prompt, one.seed, one.status) for one in made] == [
        (prompt, seed, "made") for prompt in ("A red  ball!", "blue sky") for seed in (3, 4)
    ]
    assert made[0].name.startswith("a-red-ball-3-")
    assert files(tmp_path) == sorted(one.name + suffix for one in made for suffix in (".jpg", ".json", ".mp4"))
    about = json.loads((tmp_path / f"{made[0].name}.json").read_text())
    assert (about["prompt"], about["seed"], about["num_frames"], about["fps"]) == ("A red  ball!", 3, 9, 8.0)
    assert about["settings"] == {"steps": 3, "solver": "dpm", "guidance": 6.0, "course": "constant"}
    assert {"transformer", "vae", "text_encoder", "diffusion"} == about["models"].keys()
    assert "torch" in about["versions"]
    with Video(tmp_path / f"{made[0].name}.mp4") as video:
        assert len([frame.picture(96, 64) for frame in video.frames()]) == 9
    again = list(run(prepare(request), tmp_path))
    assert [(one.name, one.status) for one in again] == [(one.name, "there") for one in made]


def test_another_request_has_another_name(model: Path, i2v: Path, tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", value=10)
    requests = [
        asked(model),
        asked(model, seed=1),
        asked(model, "a red ball!"),
        asked(model, settings=Sampling(steps=4)),
        asked(model, negative="blue"),
        asked(model, frames=5),
        asked(model, width=80),
        asked(model, fps=12.0),
        asked(model, dtype="bf16"),
        asked(model, first=red),
        asked(model, first=blue),
        asked(model, last=red),
        asked(i2v, image=red),
    ]
    names = [prepare(request).jobs[0].name for request in requests]
    assert len(set(names)) == len(names)
    assert prepare(asked(model)).jobs[0].name == names[0]


def test_moved_models_are_the_same_and_changed_ones_are_not(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    name = prepare(asked(model)).jobs[0].name
    identities = prepare(asked(copy)).places.identities()
    assert identities["transformer"] == prepare(asked(model)).places.identities()["transformer"]
    tiny(seed=9).save_pretrained(copy / "transformer")
    assert prepare(asked(copy)).jobs[0].name != name


def test_embeddings_that_were_saved_need_no_text_encoder(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.safetensors"
    whole = prepare(asked(model, negative="blue sky", save_embeddings=file))
    expected = first_video(whole)
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    assert torch.equal(first_video(prepare(asked(bare, negative="blue sky", embeddings=file))), expected)
    request = Request(sources=Sources(model=str(bare)), embeddings=file, negative="blue sky")
    assert [job.prompt for job in prepare(request).jobs] == ["a red ball"]
    with pytest.raises(UsageError, match=r"no embedding of 'a red bal'\. Did you mean 'a red ball'"):
        prepare(asked(bare, "a red bal", embeddings=file))
    with pytest.raises(UsageError, match="brings no text encoder"):
        prepare(asked(bare))
    with pytest.raises(UsageError, match="holds no embeddings"):
        prepare(asked(bare, embeddings=bare / "vae" / "diffusion_pytorch_model.safetensors"))


def test_of_several_processes_the_first_saves_all_embeddings(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(model, "a", "red", "ball", save_embeddings=tmp_path / "texts.safetensors")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        prepared = prepare(request)
        made = embedded(prepared, [job.prompt for job in prepared.jobs])
        assert {job.prompt for job in prepared.jobs} <= made.keys()
    assert set(embeddings.read(tmp_path / "texts.safetensors")) == {"a", "red", "ball"}


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)  # there is none to put anything on
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose(None, None) == ("bf16", torch.device("cuda", 3))
    assert choose(None, "cuda") == ("bf16", torch.device("cuda", 3))
    assert choose(None, "cuda:1") == ("bf16", torch.device("cuda", 1))


def test_offload_changes_nothing_but_where_models_lie(model: Path) -> None:
    plain = first_video(prepare(asked(model)))
    assert torch.equal(first_video(prepare(asked(model, offload=True))), plain)
    assert not torch.equal(first_video(prepare(asked(model, dtype="bf16"))), plain)


def test_sat_checkpoints_and_what_training_leaves_are_models_too(model: Path, tmp_path: Path) -> None:
    transformer, expected = tiny(), first_video(prepare(asked(model)))
    sat.write(tmp_path / "sat", sat.to_sat(transformer.state_dict(), transformer.config))
    (tmp_path / "sat" / "config.json").write_text(transformer.config.to_json())
    trained = tmp_path / "trained" / "weights"
    transformer.save_pretrained(trained)
    for place in (tmp_path / "sat", tmp_path / "sat" / "1" / "mp_rank_00_model_states.pt", trained.parent):
        sources = Sources(model=str(place), vae=str(model), text_encoder=str(model), snr_shift=1.0)
        assert torch.equal(first_video(prepare(asked(model, sources=sources))), expected)
    with pytest.raises(UsageError, match=r"brings no VAE: name one with --vae"):
        prepare(asked(trained))
    with pytest.raises(UsageError, match="--snr-shift"):
        prepare(asked(trained, sources=Sources(model=str(trained), vae=str(model), text_encoder=str(model))))


def test_a_lora_is_added_with_its_scale(model: Path, tmp_path: Path) -> None:
    lora = tiny_lora()
    adapters.write_diffusers(tmp_path / "trained" / "weights" / "lora", lora)
    whole = Models(tiny().eval(), tiny_vae(), Diffusion(snr_shift_scale=1.0), torch.device("cpu"))
    adapters.add(whole.transformer, lora, scale=0.5)
    sources = Sources(model=str(model), loras=((str(tmp_path / "trained"), 0.5),))
    prepared = prepare(asked(model, sources=sources))
    expected = make_one(whole, prepared, prepared.jobs[0], {"a red ball": tiny_t5()(["a red ball"])[0]})
    assert torch.equal(first_video(prepared), expected)
    assert not torch.equal(first_video(prepare(asked(model))), expected)
    words = ("x", "--model", model, "--lora", f"{tmp_path / 'trained'}:0.5", "--steps", 1)
    done = cutroom(*words, "--output", tmp_path / "o")
    assert done.exit_code == 0, done.output
    about = json.loads(next((tmp_path / "o").glob("*.json")).read_text())
    assert about["models"]["loras"][0][1] == 0.5


def test_models_of_the_hub_are_fetched_or_the_reason_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda source, allow_patterns: str(model))
    name = prepare(asked(model)).jobs[0].name
    assert prepare(asked(model, sources=Sources(model="someone/something"))).jobs[0].name == name

    def away(source: str, allow_patterns: list[str]) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(UsageError, match=r"cannot be had from the Hugging Face hub .*no network"):
        prepare(asked(model, sources=Sources(model="someone/something")))


def test_image_to_video_reads_its_picture_upright_at_the_size(i2v: Path, tmp_path: Path) -> None:
    exact = picture(tmp_path / "exact.png")
    large = picture(tmp_path / "large.png", height=128, width=192)
    one, other = (first_video(prepare(asked(i2v, image=file))) for file in (exact, large))
    assert float((one - other).abs().max()) < 0.05
    assert not torch.equal(first_video(prepare(asked(i2v, image=picture(tmp_path / "c.png", value=10)))), one)


def test_sizes_that_are_not_asked_for_are_those_of_the_training(model: Path) -> None:
    places = prepare(asked(model)).places
    request = Request(sources=Sources(model="x"))
    for name, expected in {
        "2b": (49, 480, 720, 8.0),
        "5b": (49, 480, 720, 8.0),
        "5b_v1_5": (81, 768, 1360, 16.0),
        "5b_v1_5_i2v": (81, 768, 1360, 16.0),
    }.items():
        assert size_of(request, dataclasses.replace(places, config=SIZES[name]), Given()) == expected


def test_each_process_takes_its_share(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(model, "a", "red", "ball", "left", "a")
    everything = [job.name for job in prepare(request).jobs]
    assert len(everything) == 4
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares += [job.name for job in prepare(request).jobs]
    assert sorted(shares) == sorted(everything)


def test_one_that_fails_costs_itself_only(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.transformer import produce

    def failing(models: Any, prepared: Any, job: Any, texts: Any, *, each: Any = None) -> torch.Tensor:
        if job.prompt == "red":
            raise RuntimeError("no more of it")
        return make_one(models, prepared, job, texts, each=each)

    monkeypatch.setattr(produce, "make_one", failing)
    done = cutroom("red", "blue", "--model", model, "--output", tmp_path, "--steps", 2, "--json")
    assert done.exit_code == 1
    made = [Made(**one) for one in json.loads(done.stdout)["samples"]]
    assert [one.status for one in made] == ["failed", "made"]
    assert made[0].error == "RuntimeError: no more of it"
    assert not list(tmp_path.glob("red*"))


@pytest.mark.slow
def test_prompts_that_are_cut_are_warned_of(model: Path, tmp_path: Path) -> None:
    words = ["sample", "a red ball rolls left", "--model", model, "--output", tmp_path, "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "curation.cli", *map(str, words)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "warning: 1 of 1 texts have more than 5 tokens" in done.stderr
    assert "UserWarning" not in done.stderr


def test_the_command_says_what_it_made_and_what_to_do_next(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("blue sky\n\na ball\n")
    words = ("--model", model, "--output", tmp_path / "out", "--prompts", tmp_path / "prompts.txt", "--steps", 2)
    done = cutroom(*words)
    assert done.exit_code == 0, done.output
    assert "2 made, 0 there already, 0 failed" in done.stdout
    assert "made: blue-sky-0-" in done.stderr
    assert "0 made, 2 there already" in cutroom(*words).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x", "--frames", "10"], "10 frames are not 4k+1; 9 are"),
        (["x", "--height", "72"], "72x96 is not made of 16x16; 64x96 is"),
        (["x", "--solver", "euler"], "no solver 'euler'"),
        (["x", "--course", "steep"], "no guidance 'steep'"),
        (["x", "--steps", "5000"], "choose from 1 to 1000"),
        (["x", "--chunk", "3"], "a multiple of 4 is meant"),
        (["x", "--fps", "0"], "--fps 0"),
        (["x", "--prompts", "absent.txt"], "--prompts absent.txt cannot be read"),
        (["--steps", "2"], "no prompt"),
        (["x", "--image", "absent.png"], "no picture absent.png"),
        (["x", "--extend", "absent.mp4"], "no video absent.mp4"),
        (["x", "--extend", "a.mp4", "--first", "b.png"], "choose one"),
        (["x", "--overlap", "4"], "--overlap 4"),
        (["x", "--length", "5", "--loop"], "a loop can have 9 frames"),
        (["x", "--lora", "absent:0.5"], "no LoRA in absent"),
        (["x", "--vae", "absent/vae/x"], "there is no absent/vae/x"),
        (["x", "--device", "tpu9"], "no device 'tpu9'"),
        (["x", "--embeddings", "absent.safetensors"], "holds no embeddings"),
        (["x", "--snr-shift", "0"], "is above 0"),
    ],
)
def test_wrong_requests_are_refused_before_work(model: Path, words: list[str], says: str, tmp_path: Path) -> None:
    done = cutroom("--model", model, "--output", tmp_path / "out", *words)
    assert isinstance(done.exception, UsageError), done.output
    assert says in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_missing_parts_are_named(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"transformer has no weights"):
        prepare(asked(copy))
    with pytest.raises(UsageError, match=r"there is no .*nowhere"):
        prepare(asked(tmp_path / "nowhere"))
    adapters.write_diffusers(tmp_path / "lora", tiny_lora())
    with pytest.raises(UsageError, match="holds a LoRA: name its base as --model"):
        prepare(asked(tmp_path / "lora"))
    with pytest.raises(UsageError, match="reads no picture"):
        prepare(asked(model, image=picture(tmp_path / "a.png")))


def test_weights_of_8_bits_stay_near(model: Path) -> None:
    pytest.importorskip("torchao")
    rough = first_video(prepare(asked(model, dtype="int8")))
    assert float((rough - first_video(prepare(asked(model)))).abs().mean()) < 0.1


def test_int8_needs_its_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install torchao"):
        prepare(asked(model, dtype="int8"))
