"""``cutroom train transformer``: from shards, a VAE and a YAML file to a pipeline that others open."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import ConfigError, UsageError
from curation.torchvision import mend
from tests.training.test_sample import first_video, their_frames
from tests.training.transformer_helpers import TINY, tiny
from tests.training.transformer_made import TINY_VAE, equal, quiet, weights, write_config, write_models, write_shards
from training.recipes import find_recipe
from training.transformer.convert import convert
from training.transformer.diffusion import Diffusion
from training.transformer.embeddings import embed
from training.transformer.model import Transformer
from training.transformer.models import Sources, trained
from training.transformer.pipeline import Parts, write_pipeline
from training.transformer.preflight import look_ahead
from training.transformer.prepare import find_models
from training.transformer.requests import Request, prepare
from training.transformer.run import load, train_transformer
from training.transformer.sampling import Sampling
from training.transformer.words import write_words
from training.vae.config import Chunks, Tiles
from training.vae.model import VAE

_LEARNED = "data.buckets=[{frames: 9, height: 64, width: 96}]"  # what learned positions are made for


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(shards: Path, start: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "transformer.yaml", shards, start)


@pytest.mark.slow
def test_four_and_four_steps_are_eight_bit_for_bit(config: Path, tmp_path: Path) -> None:
    figures = train_transformer(config, tmp_path / "whole", say=quiet)
    assert set(figures) == {"loss", "loss_t125", "loss_t375", "loss_t625", "loss_t875"}
    train_transformer(config, tmp_path / "halves", changes=["training.steps=4"], say=quiet)
    half = weights(tmp_path / "halves")
    train_transformer(config, tmp_path / "halves", changes=["data.prefetch=1"], say=quiet)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    assert not equal(half, weights(tmp_path / "halves"))
    samples = sorted(path.name for path in (tmp_path / "whole" / "samples").iterdir())
    assert samples[-3:] == ["step-00000008.jpg", "step-00000008.mp4", "step-00000008.txt"]


@pytest.mark.slow
def test_kill_9_while_encoding_and_training_changes_nothing(config: Path, tmp_path: Path) -> None:
    train_transformer(config, tmp_path / "whole", say=quiet)
    arguments = ["train", "transformer", str(config), "--output", str(tmp_path / "killed")]
    # A file for every two latents, so that some are not written yet.
    small = (
        "import training.transformer.encode as encode; encode._FILE_ENTRIES = 2; from curation.cli import main; main()"
    )
    command = [sys.executable, "-c", small, *arguments]
    for wanted in ("cache/latents/*.parquet", "checkpoints/step-*[0-9]"):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 100
        while time.monotonic() < until and not list((tmp_path / "killed").glob(wanted)) and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, "it was over before"
        assert list((tmp_path / "killed").glob(wanted))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{rank: 2}"])
def test_two_processes_train_and_draw_together_and_one_goes_on(lora: str, config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "curation.cli", "train", "transformer", str(config), "--num-processes", "2"]
    command += ["--output", str(tmp_path / "two"), "--set", "training.steps=4"]
    changes = [f"model.lora={lora}", "training.accumulate=2"]  # one process does the work of two
    command += ["--set", changes[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "samples" / "step-00000004.mp4").is_file()
    train_transformer(config, tmp_path / "two", changes=changes, say=quiet)
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert (tmp_path / "two" / "samples" / "step-00000008.mp4").is_file()
    train_transformer(config, tmp_path / "one", changes=changes, say=quiet)
    elastic, whole = weights(tmp_path / "two"), weights(tmp_path / "one")
    # What is added to all keys alike changes no attention: its gradient is rounding, which Adam makes steps of.
    compared = [name for name in whole if not name.endswith("norm_k.bias")]
    assert max(float((elastic[name] - whole[name]).abs().max()) for name in compared) < 1e-5


def test_diffusers_opens_the_pipeline_and_computes_alike(config: Path, tmp_path: Path) -> None:
    train_transformer(config, tmp_path / "out", changes=["training.steps=2"], say=quiet)
    mend()
    from diffusers import CogVideoXPipeline

    folder = tmp_path / "out" / "weights"
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    video = pipeline(
        "film 3 of a field",
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=2,
        output_type="latent",
        max_sequence_length=5,
    ).frames
    assert video.shape == (1, 3, 4, 8, 12)
    ours = Transformer.from_pretrained(folder)
    latents, text, t = torch.randn(1, 3, 4, 8, 12), torch.randn(1, 5, 12), torch.tensor([500])
    rotary = pipeline._prepare_rotary_positional_embeddings(64, 96, 3, torch.device("cpu"))
    with torch.no_grad():
        theirs = pipeline.transformer(latents, text, t, image_rotary_emb=rotary, return_dict=False)[0]
        assert float((ours(latents, text, t) - theirs).abs().max()) < 1e-4
    frames = their_frames(pipeline, "film 3 field")
    made = first_video(
        prepare(
            Request(
                sources=Sources(model=str(tmp_path / "out")),
                prompts=("film 3 field",),
                frames=9,
                height=64,
                width=96,
                seed=7,
                settings=Sampling(steps=3, solver="ddim", guidance=6.0),
            )
        )
    )
    assert float((made.transpose(0, 1) / 2 + 0.5 - frames).abs().max()) < 1e-4
    assert json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"] != 1.15258426  # measured


def test_a_whole_t5_is_written_as_the_encoder_that_a_pipeline_calls(tmp_path: Path) -> None:
    models = _pipeline(tmp_path / "models")
    file = models / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["T5ForConditionalGeneration"]}))
    parts = Parts(models / "vae", TINY_VAE, (models / "text_encoder", models / "tokenizer"), Diffusion())
    write_pipeline(tmp_path / "out", config=TINY["5b"], state=tiny().state_dict(), parts=parts)
    mend()
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline.from_pretrained(tmp_path / "out")
    embedded, _ = pipeline.encode_prompt("film 1", do_classifier_free_guidance=False, max_sequence_length=5)
    assert embedded.shape == (1, 5, 12)


def test_what_is_drawn_while_learning_is_decoded_as_clips_were_encoded(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Chunks | None, Tiles | None]] = []

    def decode(self: VAE, z: torch.Tensor, *, chunks: Chunks | None, tiles: Tiles | None) -> torch.Tensor:
        seen.append((chunks, tiles))
        return torch.zeros(len(z), 3, 4 * z.shape[2] - 3, 8 * z.shape[3], 8 * z.shape[4])

    monkeypatch.setattr(VAE, "decode", decode)
    changes = ["vae.chunked=false", "vae.tiled=true", "training.steps=1", "judge={steps: 1, timesteps: 1, shown: 1}"]
    train_transformer(config, tmp_path / "out", changes=changes, say=quiet)
    assert set(seen) == {(None, Tiles())}


def test_samples_are_asked_for_with_texts_of_the_length_that_was_learned(config: Path, tmp_path: Path) -> None:
    train_transformer(config, tmp_path / "out", changes=["training.steps=1", "text.tokens=7"], say=quiet)
    folder = tmp_path / "out" / "weights"
    learned = Transformer.from_pretrained(folder).config
    made = embed(str(folder), ["film 3 of a field"], config=learned, dtype="fp32", device=torch.device("cpu"))
    assert made["film 3 of a field"].shape == (7, 12)


def test_learned_positions_of_texts_keep_their_number(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "own.yaml", shards, write_models(tmp_path / "models", "5b_i2v"))
    with pytest.raises(UsageError, match=r"text\.tokens 4: this transformer has learned positions for 5"):
        train_transformer(config, tmp_path / "out", changes=["text.tokens=4", _LEARNED], say=quiet)


def test_buckets_of_other_positions_than_were_learned_are_refused(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "own.yaml", shards, write_models(tmp_path / "models", "5b_i2v"))
    with pytest.raises(UsageError, match=r"data\.buckets: 17 frames of 16x32: this transformer learned its positions"):
        look_ahead(load(config))


def _pipeline(folder: Path, kind: str = "5b", **vae: object) -> Path:
    """Models as published ones lie, with a text encoder, and changes to the VAE's config."""
    write_words(write_models(folder, kind) / "words", ["film 1 of a field"], width=12)
    for part in ("text_encoder", "tokenizer"):
        (folder / "words" / part).rename(folder / part)
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | vae))
    return folder


_OF_THE_PIPELINE = ["vae={start: null, scaling: config}", "text.start=null", "diffusion=null"]


def test_vae_and_text_encoder_are_those_of_the_pipeline_that_training_starts_from(config: Path, tmp_path: Path) -> None:
    start = _pipeline(tmp_path / "published", scaling_factor=0.7, invert_scale_latents=True)
    for place in (start, start / "transformer"):
        changes = [f"model.start={place}", *_OF_THE_PIPELINE[:2]]
        (stage,) = load(config, changes=changes)
        found = find_models(stage.config)
        assert found.vae == start / "vae"
        assert (found.vae_config.scaling_factor, found.vae_config.invert_scale_latents) == (0.7, True)
        assert found.text == (start / "text_encoder", start / "tokenizer")
    train_transformer(
        config, tmp_path / "out", changes=[f"model.start={start}", *_OF_THE_PIPELINE, "training.steps=1"], say=quiet
    )
    written = json.loads((tmp_path / "out" / "weights" / "vae" / "config.json").read_text())
    assert (written["scaling_factor"], written["invert_scale_latents"]) == (0.7, True)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"scaling_factor": 0.7}, r"has scaling_factor 1\.15258426, and model\.start .* has learned with 0\.7"),
        ({"invert_scale_latents": True}, r"has invert_scale_latents False, and model\.start .* has learned with True"),
    ],
)
def test_a_vae_that_scales_latents_otherwise_than_was_learned_is_refused(
    own: dict[str, object], said: str, config: Path, start: Path, tmp_path: Path
) -> None:
    published = _pipeline(tmp_path / "published", **own)
    for place in (published, published / "transformer"):
        with pytest.raises(UsageError, match=said):
            look_ahead(load(config, changes=[f"model.start={place}", "vae.scaling=config"]))
        look_ahead(load(config, changes=[f"model.start={place}", "vae.scaling=measure"]))
        look_ahead(load(config, changes=[f"model.start={place}", "vae.scaling=config", f"vae.start={published}"]))


def test_how_first_frames_are_scaled_is_not_measured(config: Path, start: Path, tmp_path: Path) -> None:
    published = _pipeline(tmp_path / "published", "5b_i2v", invert_scale_latents=True)
    with pytest.raises(UsageError, match="has invert_scale_latents False"):
        look_ahead(load(config, changes=[f"model.start={published}", "vae.scaling=measure", _LEARNED]))


def test_a_vae_and_a_text_encoder_that_nothing_names_are_to_be_named(config: Path, start: Path, tmp_path: Path) -> None:
    shutil.copytree(start / "transformer", tmp_path / "alone")
    for changes, said in (
        ([f"model.start={tmp_path / 'alone'}", "vae.start=null"], r"set vae\.start to the one that belongs to it"),
        ([f"model.start={start}", "text.start=null"], r"model\.start .* brings no text_encoder: set text\.start"),
        (["model={size: debug, start: null}", "vae.start=null"], r"model\.size debug brings no vae: set vae\.start"),
    ):
        with pytest.raises(UsageError, match=said):
            look_ahead(load(config, changes=changes))


_WEIGHTS = "diffusion_pytorch_model.safetensors"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (f"transformer/{_WEIGHTS}", None, "transformer has no weights"),
        (f"transformer/{_WEIGHTS}", _POINTER, "git lfs pull"),
        (f"transformer/{_WEIGHTS}", b"\x08", "is damaged .* copy it again"),
        ("transformer/config.json", {"num_layers": 3}, r"lack transformer_blocks\.2"),
        ("transformer/config.json", {"text_embed_dim": 13}, "in another shape patch_embed"),
        (f"vae/{_WEIGHTS}", None, "vae has no weights"),
        ("text_encoder/model.safetensors", None, r"text_encoder has no weights: expected .* model\.safetensors"),
    ],
)
def test_weights_that_are_not_whole_are_said_before_anything_is_encoded(
    file: str, damage: bytes | dict[str, int] | None, said: str, config: Path, tmp_path: Path
) -> None:
    damaged = _pipeline(tmp_path / "published") / file
    if damage is None:
        damaged.unlink()
    elif isinstance(damage, bytes):
        damaged.write_bytes(damage)
    else:
        damaged.write_text(json.dumps(json.loads(damaged.read_text()) | damage))
    with pytest.raises(UsageError, match=said):
        look_ahead(load(config, changes=[f"model.start={tmp_path / 'published'}", *_OF_THE_PIPELINE]))


def test_a_checkpoint_of_sat_is_to_be_converted_first(config: Path, start: Path, tmp_path: Path) -> None:
    convert(start, tmp_path / "sat", to="sat")
    with pytest.raises(UsageError, match=r"convert it first, by cutroom convert .*sat FOLDER --to diffusers"):
        look_ahead(load(config, changes=[f"model.start={tmp_path / 'sat'}"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["flex", "varlen"])
def test_attention_that_learns_on_a_gpu_only_is_refused_before_anything_is_encoded(
    name: str, config: Path, tmp_path: Path
) -> None:
    changes = [f"packing.attention={name}", "training.precision=bf16"]
    with pytest.raises(UsageError, match=f"packing.attention {name} learns on a GPU only"):
        train_transformer(config, tmp_path / "out", changes=changes, say=quiet)
    assert not (tmp_path / "out").exists()


def test_additions_in_stages_are_refused(config: Path) -> None:
    config.write_text(config.read_text() + "stages: [{name: low}, {name: high}]\n")
    with pytest.raises(UsageError, match=r"model\.lora with stages"):
        load(config, changes=["model.lora={rank: 2}"])


@pytest.mark.parametrize(
    ("own", "said"),
    [("model: {start: elsewhere}", "another model"), ("vae: {start: elsewhere}", r"another vae\.start")],
)
def test_a_later_stage_with_another_model_or_vae_is_refused(own: str, said: str, config: Path) -> None:
    config.write_text(f"{config.read_text()}stages: [{{name: low}}, {{name: high, {own}}}]\n")
    with pytest.raises(UsageError, match=f"stage high has {said} than the first one"):
        load(config)


def test_preflight_counts_the_processes_that_torchrun_started(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", "transformer", str(config), "--preflight", "--json", "--set", "packing=null"]
    steps = []
    for processes in ("1", "3"):
        monkeypatch.setenv("WORLD_SIZE", processes)
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        (report,) = json.loads(done.stdout).values()
        steps.append(report["steps"])
    assert steps[1] == -(-steps[0] // 3)


def test_what_will_be_read_is_looked_at_by_the_parent_alone(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **more: object) -> subprocess.CompletedProcess[str]:
        environments.append(env)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("training.launch.subprocess.run", run)
    arguments = ["train", "transformer", str(config), "--output", str(tmp_path / "out")]
    parent = CliRunner().invoke(app, [*arguments, "--num-processes", "2"], catch_exceptions=False)
    assert "tokens of each" in parent.stdout
    monkeypatch.setattr("training.transformer.run.train", lambda *more, **settings: {})
    child = CliRunner(env=environments[0]).invoke(app, arguments, catch_exceptions=False)
    assert (child.exit_code, "tokens of each" in child.stdout) == (0, False)


@pytest.mark.slow
def test_under_torchrun_all_wait_for_the_first_to_look_ahead(config: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "curation.cli", "train", "transformer", str(config), "--set", "training.steps=1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens of each") == 1
    assert (tmp_path / "out" / "weights" / "model_index.json").is_file()


@pytest.mark.parametrize("kind", ["5b_i2v", "5b_v1_5"])
def test_other_kinds_train_too(kind: str, shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "own.yaml", shards, write_models(tmp_path / "models", kind))
    changes = [_LEARNED, "data.images=0", "training.steps=2", "packing.tokens=250"]
    figures = train_transformer(config, tmp_path / "out", changes=changes, say=quiet)
    assert figures["loss"] > 0


def test_each_stage_goes_on_from_the_one_before(config: Path, tmp_path: Path) -> None:
    text = config.read_text() + "stages:\n  - name: low\n  - name: high\n    training: {steps: 2}\n    packing: null\n"
    config.write_text(text)
    said: list[str] = []
    train_transformer(config, tmp_path / "out", say=said.append)
    assert (tmp_path / "out" / "high" / "weights" / "model_index.json").is_file()
    low, high = (weights(tmp_path / "out" / name) for name in ("low", "high"))
    far = max(float((low[name] - high[name]).abs().max()) for name in low)
    assert 0 < far < 5e-3  # two steps at 1e-3, averaged
    scales = {json.loads(path.read_text())["scaling_factor"] for path in tmp_path.glob("out/*/weights/vae/config.json")}
    assert len(scales) == 1
    assert sum("encoding" in line and "clips" in line for line in said) == 2  # to train on and to judge by: once
    (tmp_path / "out" / "low" / "weights").touch()  # a copy of the folder may have any times
    assert trained(tmp_path / "out") == tmp_path / "out" / "high" / "weights"


def test_additions_alone_are_trained_and_diffusers_loads_them(config: Path, start: Path, tmp_path: Path) -> None:
    changes = ["model.lora={rank: 2, alpha: 4}", "training.steps=4", "training.ema=null"]
    train_transformer(config, tmp_path / "out", changes=changes, say=quiet)
    mend()
    from diffusers import CogVideoXPipeline

    folder = tmp_path / "out" / "weights"
    pipeline = CogVideoXPipeline.from_pretrained(
        folder, transformer=__import__("diffusers").CogVideoXTransformer3DModel.from_pretrained(start / "transformer")
    )
    latents, text, t = torch.randn(1, 3, 4, 8, 12), torch.randn(1, 5, 12), torch.tensor([500])
    rotary = pipeline._prepare_rotary_positional_embeddings(64, 96, 3, torch.device("cpu"))

    def run() -> torch.Tensor:
        with torch.no_grad():
            return pipeline.transformer(latents, text, t, image_rotary_emb=rotary, return_dict=False)[0]

    before = run()
    pipeline.load_lora_weights(folder / "lora")
    ours = Transformer.from_pretrained(folder)
    with torch.no_grad():
        merged = ours(latents, text, t)
    assert float((run() - merged).abs().max()) < 1e-4
    assert float((before - merged).abs().max()) > 1e-4
    untouched = "transformer_blocks.0.ff.net.2.weight"
    assert torch.equal(weights(tmp_path / "out")[untouched], Transformer.from_pretrained(start).state_dict()[untouched])


def test_a_checkpoint_of_additions_is_without_the_model_that_must_stay_as_it_was(
    config: Path, start: Path, tmp_path: Path
) -> None:
    def go(folder: str, steps: int) -> None:
        changes = ["model.lora={rank: 2}", f"model.start={tmp_path / 'start'}", f"training.steps={steps}"]
        train_transformer(config, tmp_path / folder, changes=changes, say=quiet)

    shutil.copytree(start, tmp_path / "start")
    go("whole", 4)
    go("halves", 2)
    go("halves", 4)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    (newest,) = sorted((tmp_path / "halves" / "checkpoints").iterdir())[-1:]
    stored = FileSystemReader(newest).read_metadata().state_dict_metadata
    names = {name for name in stored if name.startswith("transformer.model.")}
    assert names
    assert all(".lora_" in name for name in names)
    other = Transformer.from_pretrained(tmp_path / "start")
    torch.nn.init.zeros_(other.proj_out.bias)
    other.save_pretrained(tmp_path / "start" / "transformer")
    with pytest.raises(UsageError, match="halves began with other weights than it is given now"):
        go("halves", 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("packing.tokens=14", "the longest sample alone has 15 tokens"),
        ("data.buckets=[{frames: 8, height: 16, width: 16}]", "4k+1 frames"),
        ("data.buckets=[{frames: 81, height: 16, width: 32}]", "is empty"),
        ("conditions.frames={frist: 0.1}", "Did you mean"),
        ("conditions.frames={first: 0.7, last: 0.7}", "add up to 1.4"),
        ("model.size=debug", "either `size`"),
        ("text.start=/nowhere", "text.start"),
        ("text.tokens=0", "text.tokens"),
        ("packing.attention=fast", "no attention"),
        ("data.shuffle=false", "always shuffled"),
        ("packing={tokens: 60, attention: varlen}", "computes in bf16 only"),
        ("training.context_parallel=7", "does not divide the transformer's"),
        ("model.lora={rank: 2, targets: [to_x]}", "no layer is called 'to_x'"),
        ("training.seed=-1", "training.seed"),
        ("optimiser.betas=[0.9, 1.0]", "betas"),
        ("optimiser.learning_rate=-1.0", "learning_rate"),
    ],
)
def test_what_cannot_be_met_exits_with_2_before_anything_is_encoded(
    change: str, said: str, config: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        look_ahead(load(config, changes=[change]))
    assert said in str(raised.value)
    arguments = ["train", "transformer", str(config), "--output", str(tmp_path / "out"), "--set", change]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UsageError) or done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_file_is_named_with_its_place(config: Path) -> None:
    config.write_text(config.read_text().replace("tokens: 60", "tokns: 60"))
    with pytest.raises(ConfigError, match=r"transformer\.yaml:\d+:\d+.*tokens"):
        load(config)


def test_preflight_says_tokens_packs_and_steps(config: Path) -> None:
    report = look_ahead(load(config, changes=["training.accumulate=2"]), world=2)[""]
    # A text of 5 tokens; 16x32 px are 2 tokens a latent frame.
    tokens = {(each.bucket, each.kind): each.tokens for each in report.shapes}
    assert tokens[("17x16x32", "clips")] == 5 + 5 * 2
    assert tokens[("5x16x32", "images")] == 5 + 1 * 2
    assert report.steps == -(-report.groups // 4)
    assert report.fill is not None
    assert report.fill > 0.5
    assert report.unit == "packs"


@pytest.mark.parametrize("packing", ["null", "{tokens: 60}"])
def test_the_table_has_batches_where_samples_are_in_such(packing: str, config: Path) -> None:
    arguments = ["train", "transformer", str(config), "--preflight", "--set", f"packing={packing}"]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert ("batches" in said) == (packing == "null")
    assert ("packs" in said) == (packing != "null")


@pytest.mark.parametrize(("tokens", "long"), [(5, 6), (6, 6), (7, 0)])
def test_preflight_counts_the_captions_that_are_cut(tokens: int, long: int, start: Path, tmp_path: Path) -> None:
    captions = {number: "one two three four five six" if number % 2 else "short" for number in range(12)}
    config = write_config(tmp_path / "t.yaml", write_shards(tmp_path / "shards", captions=captions), start)
    write_words(tmp_path / "words", captions.values(), width=12)
    changes = [f"text.start={tmp_path / 'words'}", f"text.tokens={tokens}", "data.held_out=0"]
    (report,) = look_ahead(load(config, changes=changes)).values()
    assert report.long_captions == long


@pytest.mark.parametrize("name", ["transformer", "transformer-debug", "transformer-finetune"])
def test_recipes_are_valid(name: str) -> None:
    assert load(find_recipe(Path(name)))
