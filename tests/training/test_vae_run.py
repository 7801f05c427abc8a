"""``cutroom train vae``: from shards and a YAML file to weights that others open, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import ConfigError, UsageError
from curation.torchvision import mend
from tests.training.data.made import sample, write_tar
from training.data.held_out import open_parts
from training.data.loader import Loader
from training.data.settings import Bucket, DataSettings
from training.recipes import find_recipe
from training.vae.config import size
from training.vae.evaluate import Look, Reconstruction, Reconstructor, write
from training.vae.model import VAE
from training.vae.run import load, look_ahead, train_vae

_CONFIG = """\
data:
  shards: SHARDS
  buckets: [{frames: 5, height: 16, width: 16, batch_size: 2}]
  images: 0.25
  held_out: 0.2
  min_pixels: 0.01
  workers: 1
model: {start: START}
optimiser: {learning_rate: 1.0e-3, warmup_steps: 2, schedule: constant}
training: {steps: 8, precision: fp32, ema: 0.9, log_every: 1, judge_every: 4, checkpoint_every: 2}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of twelve videos in two shards."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        write_tar(folder / f"{shard}.tar", [sample(6 * shard + i, video_id=f"v{6 * shard + i}") for i in range(6)])
    return folder


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tiny = VAE(size("debug").__class__(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4))
    tiny.save_pretrained(tmp_path / "start")
    path = tmp_path / "vae.yaml"
    path.write_text(_CONFIG.replace("SHARDS", str(shards)).replace("START", str(tmp_path / "start")))
    return path


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights" / "diffusion_pytorch_model.safetensors")


def _equal(first: Path, second: Path) -> bool:
    ours, theirs = _weights(first), _weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _quiet(text: str) -> None:
    del text


@pytest.mark.slow
def test_four_and_four_steps_are_eight_bit_for_bit(config: Path, tmp_path: Path) -> None:
    figures = train_vae(config, tmp_path / "whole", say=_quiet)
    assert {"videos_psnr", "videos_ssim", "videos_flicker"} <= set(figures)
    train_vae(config, tmp_path / "halves", changes=["training.steps=3"], say=_quiet)
    train_vae(config, tmp_path / "halves", changes=["data.workers=0"], say=_quiet)
    assert _equal(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.slow
def test_kill_9_at_any_moment_costs_only_what_came_after_the_last_checkpoint(config: Path, tmp_path: Path) -> None:
    train_vae(config, tmp_path / "whole", changes=["training.steps=16"], say=_quiet)
    arguments = ["train", "vae", str(config), "--output", str(tmp_path / "killed"), "--set", "training.steps=16"]
    command = [sys.executable, "-m", "curation.cli", *arguments]
    for kills in range(3):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        checkpoints = tmp_path / "killed" / "checkpoints"
        while time.monotonic() < until and len(list(checkpoints.glob("step-*"))) <= min(kills, 1):
            time.sleep(0.02)
        time.sleep(0.11 * kills)
        running.send_signal(signal.SIGKILL)
        running.wait()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr
    assert _equal(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_diffusers_opens_what_was_trained_and_reconstructs_alike(config: Path, tmp_path: Path) -> None:
    train_vae(config, tmp_path / "out", changes=["training.steps=2"], say=_quiet)
    mend()
    from diffusers import AutoencoderKLCogVideoX

    theirs = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "out" / "weights")
    ours = VAE.from_pretrained(tmp_path / "out" / "weights")
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    with torch.no_grad():
        latent = theirs.encode(video).latent_dist.mean
        made = theirs.decode(latent).sample
        whole = ours.decode(ours.encode(video).mean)
    assert latent.shape == (1, 16, 3, 2, 2)
    assert float((made - whole).abs().max()) < 1e-4


@pytest.mark.slow
def test_each_stage_begins_with_the_weights_of_the_one_before(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    document["stages"] = [
        {"name": "short", "training": {"steps": 3}},
        # Nothing is learnt here, so that the weights are those it began with.
        {"name": "long", "data": {"buckets": [{"frames": 9, "height": 16, "width": 16}]}, "training": {"steps": 1}},
    ]
    document["stages"][1]["optimiser"] = {"learning_rate": 0.0, "weight_decay": 0.0}
    config.write_text(yaml.safe_dump(document))
    train_vae(config, tmp_path / "out", say=_quiet)
    assert _equal(tmp_path / "out" / "short", tmp_path / "out" / "long")
    assert [len(look.buckets) for look in look_ahead(load(config)).values()] == [2, 2]


@pytest.mark.slow
def test_each_stage_begins_with_the_discriminator_of_the_one_before(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    document["loss"] = {"adversarial": {"weight": 0.5, "start": 0, "width": 8, "depth": 2}}
    still = {"weight": 0.5, "start": 0, "width": 8, "depth": 2, "optimiser": {"learning_rate": 0.0, "weight_decay": 0}}
    document["stages"] = [
        {"name": "short", "training": {"steps": 3}},
        {"name": "long", "training": {"steps": 1}, "loss": {"adversarial": still}},
        {"name": "wide", "training": {"steps": 1}, "loss": {"adversarial": {**still, "width": 16}}},
    ]
    config.write_text(yaml.safe_dump(document))
    said, names = list[str](), ("short", "long", "wide")
    train_vae(config, tmp_path / "out", say=said.append)
    short, long, wide = (load_file(tmp_path / "out" / name / "discriminator.safetensors") for name in names)
    assert short.keys() == long.keys()
    assert all(torch.equal(short[name], long[name]) for name in short)
    assert wide["verdict.weight"].shape != long["verdict.weight"].shape
    assert [line for line in said if "a new discriminator begins" in line]


@pytest.mark.slow
def test_held_out_videos_are_never_learnt_from(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[bool, set[str]] = {True: set(), False: set()}
    original = Loader.__iter__

    def watched(self: Loader):  # type: ignore[no-untyped-def]
        for batch in original(self):
            read[self._epochs == 1] |= set(batch.keys)  # held out is read once, to its end
            yield batch

    monkeypatch.setattr(Loader, "__iter__", watched)
    train_vae(config, tmp_path / "out", changes=["data.workers=0", "training.steps=12"], say=_quiet)
    assert read[True]
    assert read[False]
    assert not read[True] & read[False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.shards=nowhere", "nowhere"),
        ("data.buckets=[{frames: 6, height: 16, width: 16}]", r"6x16x16 does not fit the VAE, which takes 4k\+1"),
        ("data.buckets=[{frames: 5, height: 20, width: 16}]", "divisible by 8"),
        ("data.buckets=[{frames: 21, height: 16, width: 16}]", "too_short"),
        ("data.held_out=0.9999", "leaves none of 12 samples"),
        ("model.size=tiny", r"either `size` .*or `start`"),
        ("model={size: tiny, start: null}", "no VAE size 'tiny'.*Valid: debug, full, small"),
        ("model.start=nowhere", "nowhere"),
        ("training.context_parallel=3", "context_parallel with data.buckets 5x16x16: 5 frames are 2 latents"),
        ("training.context_parallel=2", "cannot be shared by training.context_parallel"),
        ("loss.adversarial={weight: 1.0, depth: 5}", "5x16x16 is too small for loss.adversarial of depth 5"),
        ("loss.kl=-1", "kl -1"),
        ("loss.perceptual.frames=0", "loss.perceptual.frames.*greater than or equal to 1"),
        ("loss.adversarial.start=-1", "loss.adversarial.start.*greater than or equal to 0"),
        ("loss.adversarial.width=12", "loss.adversarial.width.*multiple of 8"),
        ("loss.perceptual={weight: 1.0, trunk: nowhere.pth}", "there is no file nowhere.pth"),
        ("training.wandb=mine", "pip install wandb"),
    ],
)
def test_a_wrong_request_is_said_before_work_starts(change: str, message: str, config: Path, tmp_path: Path) -> None:
    changes = ["data.images=0.25", change] if "context" in change else [change]
    with pytest.raises(UsageError, match=message):
        train_vae(config, tmp_path / "out", changes=changes, say=_quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"model": {"size": "tiny", "start": None}}, "no VAE size 'tiny'"),
        ({"model": {"start": "nowhere"}}, "nowhere"),
        ({"model": {"start": None}}, "either `size`"),
        ({"training": {"steps": 1, "context_parallel": 2}, "data": {"images": 0.0}}, "2 does not divide 1 processes"),
    ],
)
def test_what_a_later_stage_cannot_do_is_said_before_the_first(
    later: dict[str, Any], message: str, config: Path, tmp_path: Path
) -> None:
    document = yaml.safe_load(config.read_text())
    document["stages"] = [{"name": "short", "training": {"steps": 1}}, {"name": "long", **later}]
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(UsageError, match=message):
        train_vae(config, tmp_path / "out", say=_quiet)
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, ["train", "vae", str(config), "--output", str(tmp_path / "out")])
    assert isinstance(result.exception, UsageError)


def test_what_is_wrong_with_shards_is_counted_once_and_not_against_the_few_to_judge_by(tmp_path: Path) -> None:
    faulty = [(f"torn-{i}", {"txt": b"no video"}) for i in range(12)]
    write_tar(tmp_path / "0.tar", [*(sample(i, video_id=f"v{i}") for i in range(40)), *faulty])
    buckets = [Bucket(frames=5, height=16, width=16)]
    settings = DataSettings(shards=str(tmp_path), buckets=buckets, held_out=0.1, min_pixels=0.01, max_bad=0.5)
    train, judge = open_parts(settings, settings.held_out)
    assert sum(fault.num_samples for fault in train.faults) == 12
    assert 0 < len(judge) < 12
    with Loader(dataclasses.replace(settings, workers=0), catalogue=judge, epochs=1) as loader:
        assert len(list(loader)) == len(judge)


def test_where_nothing_held_out_fits_a_bucket_training_goes_on_and_says_so(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_tar(folder / "0.tar", [sample(i, 20, video_id=f"v{i}") for i in range(6)])
    settings = DataSettings(shards=str(folder), buckets=[Bucket(frames=5, height=16, width=16)], min_pixels=0.01)
    _, judge = open_parts(settings, 0.05)
    (number,) = [int(key.removeprefix("clip-")) for key in judge.table["key"].to_pylist()]
    samples = [sample(i, 3 if i == number else 20, video_id=f"v{i}") for i in range(6)]
    write_tar(folder / "0.tar", samples)
    said: list[str] = []
    changes = [f"data.shards={folder}", "data.held_out=0.05", "data.images=0.0", "training.steps=2"]
    train_vae(config, tmp_path / "out", changes=changes, say=said.append)
    assert any(line.startswith("data.held_out 0.05: of what is held out no sample fits a bucket") for line in said)
    assert "nothing is judged" in said
    assert (tmp_path / "out" / "weights").is_dir()


def test_preflight_counts_the_steps_of_all_processes(config: Path) -> None:
    steps = [look_ahead(load(config), world=world)[""].steps for world in (1, 2)]
    assert steps[1] == -(-steps[0] // 2)


@pytest.mark.slow
def test_a_stage_does_not_go_on_from_another_than_it_began_with(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    document["stages"] = [{"name": "short", "training": {"steps": 2}}, {"name": "long", "training": {"steps": 2}}]
    config.write_text(yaml.safe_dump(document))
    for _ in range(2):  # again is no mistake
        train_vae(config, tmp_path / "out", say=_quiet)
    with pytest.raises(UsageError, match=r"long began with other weights than it is given now: remove it"):
        train_vae(config, tmp_path / "out", changes=["training.steps=4"], say=_quiet)


@pytest.mark.slow
def test_what_is_held_out_and_bad_ends_nothing(config: Path, tmp_path: Path) -> None:
    place = tmp_path / "shards"

    def pack(torn: list[str]) -> None:
        samples = (sample(i, video_id=f"v{i}") for i in range(12))
        write_tar(place / "0.tar", [(k, {**parts, "mp4": b"-"} if k in torn else parts) for k, parts in samples])

    pack([])
    data = dataclasses.replace(load(config)[0].config.data, shards=str(place))
    _, judge = open_parts(data, data.held_out)
    pack(judge.table["key"].to_pylist())
    said: list[str] = []
    train_vae(config, tmp_path / "out", changes=[f"data.shards={place}", "training.steps=2"], say=said.append)
    assert any(line.startswith("data.held_out 0.2: of what is held out training stops: none of") for line in said)
    assert "nothing is judged" in said
    assert _weights(tmp_path / "out")


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_an_output_that_is_a_file_is_said_first(name: str, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is a file; name a folder"):
        train_vae(config, tmp_path / name, say=_quiet)


def test_numbers_may_be_written_as_everybody_does(config: Path) -> None:
    config.write_text(config.read_text().replace("1.0e-3", "1e-3"))
    assert load(config)[0].config.optimiser.learning_rate == 1e-3
    assert load(config, changes=["optimiser.learning_rate=2E-5"])[0].config.optimiser.learning_rate == 2e-5


def test_a_mistake_in_the_file_has_its_place(config: Path) -> None:
    config.write_text(config.read_text().replace("batch_size", "batchsize"))
    with pytest.raises(ConfigError, match=r"vae.yaml:3:48: unknown key 'batchsize'. Did you mean 'batch_size'"):
        load(config)


def test_the_recipes_are_valid(shards: Path) -> None:
    for name in ("vae", "vae-debug"):
        stages = load(find_recipe(Path(name)), changes=[f"data.shards={shards}"])
        assert stages
    with pytest.raises(UsageError, match="Did you mean 'vae'"):
        find_recipe(Path("vea"))


@pytest.mark.slow
def test_the_commands_say_what_they_did(config: Path, shards: Path, tmp_path: Path) -> None:
    runner, output = CliRunner(), str(tmp_path / "out")
    look = runner.invoke(app, ["train", "vae", str(config), "--preflight", "--json"], catch_exceptions=False)
    assert json.loads(look.stdout)[""]["buckets"][0]["bucket"] == "5x16x16"
    assert "5x16x16" in runner.invoke(app, ["train", "vae", str(config), "--preflight"]).stdout
    assert not Path(output).exists()

    options = ["--output", output, "--set", "training.steps=2", "--json"]
    done = runner.invoke(app, ["train", "vae", str(config), *options], catch_exceptions=False)
    assert done.exit_code == 0
    weights = json.loads(done.stdout)["weights"]
    assert weights == [str(tmp_path / "out" / "weights")]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "frames_per_s" in row]
    assert len(steps) == 2
    assert {round(row["frames_per_s"] / row["samples_per_s"]) for row in steps} <= {1, 5}  # images, or videos

    options = ["--weights", weights[0], "--frames", "5", "--height", "16", "--width", "16"]
    judged = runner.invoke(app, ["vae", "eval", str(shards), *options, "--json"], catch_exceptions=False)
    assert judged.exit_code == 0
    assert json.loads(judged.stdout)["samples"] == 12
    made = tmp_path / "made"
    shown = runner.invoke(
        app,
        ["vae", "reconstruct", str(shards), *options, "--limit", "2", "--output", str(made)],
        catch_exceptions=False,
    )
    assert shown.exit_code == 0
    assert sorted(path.suffix for path in made.iterdir()) == [".jpg", ".jpg", ".mp4", ".mp4"]


@pytest.mark.parametrize("limit", [None, 2])
def test_each_sample_of_shards_is_judged_once_or_named(limit: int | None, config: Path, tmp_path: Path) -> None:
    samples = [sample(i, 3 if i == 5 else 20, video_id=f"v{i}") for i in range(6)]
    samples[1][1]["mp4"] = b"torn"
    write_tar(tmp_path / "shards" / "0.tar", samples)
    look = Look(frames=5, height=16, width=16)
    found = list(Reconstructor(str(tmp_path / "start"), look, device="cpu").each(str(tmp_path / "shards"), limit=limit))
    made = [one.name for one in found if not isinstance(one, str)]
    assert made == [f"clip-000{i}" for i in (0, 2, 3, 4)][:limit]
    failed = [one for one in found if isinstance(one, str)]
    assert any("clip-0001" in line for line in failed)
    assert failed[-1] == "too_short: clip-0005"
    assert len(failed) == 2


def test_a_reconstruction_never_takes_the_place_of_a_video(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = sample(0)[1]["mp4"]
    for name in ("mine.mp4", "mine.ts"):  # read by what is in it
        (tmp_path / name).write_bytes(video)
    write_tar(tmp_path / "shards" / "0.tar", [("a/same", sample(1)[1]), ("b/c", sample(2)[1])])
    write_tar(tmp_path / "shards" / "1.tar", [("a/same", sample(3)[1])])
    monkeypatch.chdir(tmp_path)
    options = ["--weights", "start", "--frames", "5", "--height", "20", "--width", "23"]
    for source in ("mine.mp4", "mine.ts", "shards"):
        done = CliRunner().invoke(
            app, ["vae", "reconstruct", source, *options, "--output", "."], catch_exceptions=False
        )
        assert done.exit_code == 0, done.stdout
    assert (tmp_path / "mine.mp4").read_bytes() == video
    made = {path.name for path in tmp_path.glob("*-reconstructed.mp4")}
    assert made == {f"{name}-reconstructed.mp4" for name in ("mine", "a_same", "a_same-2", "b_c")}


@pytest.mark.slow
def test_folders_and_addresses_of_files_are_read_as_videos(config: Path, tmp_path: Path) -> None:
    videos = tmp_path / "my videos"
    for number, name in enumerate(("a.mp4", "sub/a.mp4")):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(sample(number)[1]["mp4"])
    (videos / "b.mp4").write_bytes(b"torn")
    model = Reconstructor(str(tmp_path / "start"), Look(frames=5), device="cpu")
    names = [one if isinstance(one, str) else one.name for one in model.each(str(videos))]
    assert names[0] == "a"
    assert names[1].startswith(f"{videos / 'b.mp4'}: ")
    assert names[2] == "sub/a"
    assert [one.name for one in model.each(str(videos), limit=1) if not isinstance(one, str)] == ["a"]
    address = (videos / "a.mp4").as_uri()
    assert "%20" in address
    assert [one.name for one in model.each(address) if not isinstance(one, str)] == ["a"]


def test_shards_go_before_videos_in_one_folder(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_tar(run / "shards" / "0.tar", [sample(0)])
    (run / "mine.mp4").write_bytes(sample(1)[1]["mp4"])
    model = Reconstructor(str(tmp_path / "start"), Look(frames=5, height=16, width=16), device="cpu")
    assert [one.name for one in model.each(str(run)) if not isinstance(one, str)] == ["clip-0000"]
    (run / "shards" / "index.json").write_text("torn")
    with pytest.raises(UsageError, match="is no index of shards"):
        next(model.each(str(run)))


def test_a_folder_of_neither_videos_nor_shards_is_said(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model = Reconstructor(str(tmp_path / "start"), Look(), device="cpu")
    with pytest.raises(UsageError, match=r"empty holds no shards .* and as videos: .*no video in it"):
        next(model.each(str(tmp_path / "empty")))


def test_a_reconstruction_that_would_be_a_video_of_the_folder_is_said_before_work(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "clips"
    videos.mkdir()
    for name in ("a.mp4", "a-reconstructed.mp4"):
        (videos / name).write_bytes(name.encode())
    monkeypatch.chdir(videos)
    command = ["vae", "reconstruct", ".", "--weights", str(tmp_path / "start"), "--output", "."]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError)
    assert "a-reconstructed.mp4 is a video of .; name another folder" in str(done.exception)
    assert {path.name: path.read_bytes() for path in videos.iterdir()} == {
        name: name.encode() for name in ("a.mp4", "a-reconstructed.mp4")
    }


@pytest.mark.parametrize("side", [0, 7])
def test_pictures_too_small_for_the_vae_are_said_before_work(side: int, config: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"at least 8 px a side, not 16x{side}"):
        Reconstructor(str(tmp_path / "start"), Look(height=16, width=side), device="cpu")


def test_what_is_lost_shows_in_the_exit_status(config: Path, tmp_path: Path) -> None:
    torn = sample(1)
    torn[1]["mp4"] = b"torn"
    write_tar(tmp_path / "shards" / "0.tar", [sample(0), torn])
    options = ["--weights", str(tmp_path / "start"), "--frames", "5", "--height", "16", "--width", "16"]
    shards = str(tmp_path / "shards")
    assert CliRunner().invoke(app, ["vae", "eval", shards, *options]).exit_code == 1
    made = ["--output", str(tmp_path / "made")]
    assert CliRunner().invoke(app, ["vae", "reconstruct", shards, *options, *made]).exit_code == 1


def test_pictures_too_small_for_lpips_are_said_before_work(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"alex takes pictures of at least 31 px a side, not 16x256"):
        Reconstructor(str(tmp_path / "start"), Look(height=16, lpips="torchvision"), device="cpu")
    with pytest.raises(UsageError, match=r"alex takes pictures of at least 31 px a side, not 24x256"):  # as it is cut
        Reconstructor(str(tmp_path / "start"), Look(height=31, lpips="torchvision"), device="cpu")
    with pytest.raises(UsageError, match=r"squeeze takes pictures of at least 17 px a side, not 16x16"):
        load(config, changes=["loss.perceptual={weight: 1.0, network: squeeze}"])


@pytest.mark.slow
def test_the_last_stage_is_named_in_the_end(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    document["stages"] = [{"name": "short", "training": {"steps": 1}}, {"name": "long", "training": {"steps": 1}}]
    config.write_text(yaml.safe_dump(document))
    output = tmp_path / "out"
    done = CliRunner().invoke(app, ["train", "vae", str(config), "--output", str(output), "--json"])
    assert json.loads(done.stdout)["weights"] == [str(output / name / "weights") for name in ("short", "long")]
    said = CliRunner().invoke(app, ["train", "vae", str(config), "--output", str(output)]).stdout
    assert f"eval SHARDS --weights {output / 'long' / 'weights'}" in said.replace("\n", " ")


def test_shards_of_torn_videos_alone_are_named(config: Path, tmp_path: Path) -> None:
    samples = [sample(i) for i in range(25)]
    for _, parts in samples:
        parts["mp4"] = b"torn"
    write_tar(tmp_path / "shards" / "0.tar", samples)
    options = ["--weights", str(tmp_path / "start"), "--frames", "5", "--height", "16", "--width", "16", "--json"]
    done = CliRunner().invoke(app, ["vae", "eval", str(tmp_path / "shards"), *options])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["samples"] == 0
    assert said["failed"][0].startswith("the rest was not read")
    assert "clip-0000" in said["failed"][1]


@pytest.mark.slow
def test_two_processes_are_started_and_learn_together(config: Path, tmp_path: Path) -> None:
    arguments = ["train", "vae", str(config), "--output", str(tmp_path / "out"), "--set", "training.steps=2"]
    command = [sys.executable, "-m", "curation.cli", *arguments, "--num-processes", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Weights:") == 1
    assert done.stdout.count("steps in an epoch") == 1
    assert _weights(tmp_path / "out")


@pytest.mark.slow
def test_kill_9_of_the_launcher_ends_its_processes(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["train", "vae", str(config), "--output", str(output), "--set", "training.steps=1000000"]
    command = [sys.executable, "-m", "curation.cli", *arguments, "--num-processes", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) >= 3, "torchrun and its two"
    running.send_signal(signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@pytest.mark.slow
def test_ray_starts_workers_that_learn_together(config: Path, tmp_path: Path) -> None:
    arguments = ["train", "vae", str(config), "--output", str(tmp_path / "out"), "--set", "training.steps=2"]
    command = [sys.executable, "-m", "curation.cli", *arguments, "--num-processes", "2", "--engine", "ray"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _weights(tmp_path / "out")


@pytest.mark.parametrize("letter", ["a", "\u4e2d"])
def test_names_too_long_for_a_file_are_cut_and_stay_apart(letter: str, tmp_path: Path) -> None:
    video, written = torch.zeros(3, 1, 16, 16), set[str]()
    for last in "xy":
        found = Reconstruction(letter * 240 + last, video, video, 8.0, {})
        assert all(path.is_file() for path in write(found, tmp_path, written))
    assert len(list(tmp_path.iterdir())) == 4
