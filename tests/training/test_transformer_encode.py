"""What is encoded, and what is not encoded again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.training.data.made import sample, write_tar
from tests.training.transformer_made import quiet, write_config, write_models, write_shards
from training.data.held_out import open_parts
from training.distributed import World
from training.transformer.cache import Cache
from training.transformer.prepare import Ready, prepare
from training.transformer.run import load, train_transformer
from training.transformer.words import write_words
from training.vae.config import Chunks
from training.vae.model import VAE

_SETTINGS = ["data.images=0", "data.held_out=0", "judge.shown=0"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    write_models(tmp_path / "models")
    write_words(tmp_path / "words", ["film 1 of a field in the rain at night"], width=12)
    write_config(tmp_path / "own.yaml", tmp_path / "shards", tmp_path / "models")
    return tmp_path


def _prepare(place: Path, *changes: str) -> tuple[Ready, list[str]]:
    said: list[str] = []
    settings = [*_SETTINGS, f"text.start={place / 'words'}", *changes]
    config = load(place / "own.yaml", changes=settings)[0].config
    return prepare(config, cache=place / "cache", before=None, world=World(), say=said.append), said


def _encoded(said: list[str]) -> tuple[int, int]:
    """Clips and captions."""
    counts = dict.fromkeys(("clips", "captions"), 0)
    for line in said:
        words = line.split()
        if words[0] == "encoding":
            counts[words[2].rstrip(";")] += int(words[1])
    return counts["clips"], counts["captions"]


def test_nothing_is_encoded_twice(place: Path) -> None:
    _, said = _prepare(place)
    assert _encoded(said) == (12, 12)
    assert _encoded(_prepare(place)[1]) == (0, 0)


def test_a_changed_caption_encodes_that_text_alone(place: Path) -> None:
    _prepare(place)
    write_shards(place / "shards", captions={4: "film 4 in the rain"})
    assert _encoded(_prepare(place)[1]) == (0, 1)


def test_other_weights_of_the_vae_encode_all_clips_and_no_text(place: Path) -> None:
    _prepare(place)
    vae = VAE.from_pretrained(place / "models" / "vae")
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[0] += 1e-3
    vae.save_pretrained(place / "models" / "vae")
    assert _encoded(_prepare(place)[1]) == (12, 0)


@pytest.mark.parametrize(
    ("change", "clips"),
    [
        ("vae.chunked=false", 12),
        ("data.crop=center", 12),
        ("data.buckets=[{frames: 5, height: 16, width: 32}]", 8),  # four were in that bucket
        ("data.seed=7", 0),
        ("conditions.drop_caption=0.5", 0),
        ("data.window=1", 0),
    ],
)
def test_what_decides_latents_is_in_their_name_and_nothing_else(change: str, clips: int, place: Path) -> None:
    _prepare(place)
    assert _encoded(_prepare(place, change)[1]) == (clips, 0)


def test_samples_of_one_name_in_two_shards_are_two(place: Path) -> None:
    shutil.rmtree(place / "shards")
    for number in range(2):
        _, parts = sample(number, 20, video_id=f"v{number}")
        write_tar(place / "shards" / f"{number}.tar", [("1", parts)])
    ready, said = _prepare(place, "data.buckets=[{frames: 5, height: 16, width: 32}]")
    assert _encoded(said) == (2, 2)
    first, second = (ready.kept.load(one) for one in ready.samples)
    assert not torch.equal(first.mean, second.mean)
    assert {first.caption, second.caption} == {"film 0", "film 1"}


def test_the_same_clip_under_two_names_is_encoded_once(place: Path) -> None:
    _, parts = sample(1, 20, video_id="v1")
    write_tar(place / "shards" / "2.tar", [("copy", parts)])
    assert _encoded(_prepare(place)[1])[0] == 12


def test_latents_are_the_posterior_without_a_scale(place: Path) -> None:
    ready, _ = _prepare(place, "data.flip=0", "vae.scaling=config")
    vae = VAE.from_pretrained(place / "models" / "vae")
    assert ready.parts.vae_config.scaling_factor == vae.config.scaling_factor
    config = load(place / "own.yaml", changes=_SETTINGS)[0].config
    catalogue, _ = open_parts(config.data, 0.0)
    from training.transformer.encode import _decoded

    one = ready.samples[0]
    ((_, video, _),) = _decoded([one], catalogue, config.data)
    with torch.no_grad():
        posterior = vae.encode(video[None].float() / 127.5 - 1, chunks=Chunks())
    loaded = ready.kept.load(one)
    assert torch.equal(loaded.mean, posterior.mean[0].half())
    assert torch.equal(loaded.std, posterior.std[0].half())


def test_a_clip_that_cannot_be_decoded_costs_itself_and_only_once(place: Path) -> None:
    key, parts = sample(50, 20, video_id="v50")
    write_tar(place / "shards" / "2.tar", [(key, {**parts, "mp4": parts["mp4"][:300]})])
    ready, said = _prepare(place)
    assert any("undecodable" in line or "bad" in line for line in said)
    assert len(ready.samples) == 12
    assert _encoded(_prepare(place)[1]) == (0, 0)


def test_encode_only_leaves_nothing_for_the_training_to_encode(place: Path) -> None:
    train_transformer(place / "own.yaml", place / "out", say=quiet, encode_only=True)
    assert not (place / "out" / "checkpoints").exists()
    said: list[str] = []
    train_transformer(place / "own.yaml", place / "out", changes=["training.steps=1"], say=said.append)
    assert _encoded(said) == (0, 0)
    assert list((place / "out" / "checkpoints").iterdir())


def test_the_scale_makes_latents_of_deviation_one(place: Path) -> None:
    ready, _ = _prepare(place)
    square = 0.0
    for one in ready.samples:
        loaded = ready.kept.load(one)
        square += float(loaded.mean.double().square().mean() + loaded.std.double().square().mean())
    assert ready.parts.vae_config.scaling_factor == pytest.approx((square / len(ready.samples)) ** -0.5, rel=1e-3)


def test_old_leftovers_are_swept(tmp_path: Path) -> None:
    import os
    import time

    cache = Cache(tmp_path)
    cache.write({"a": (torch.zeros(2),)})
    (tmp_path / ".x.safetensors.1").write_bytes(b"")
    (tmp_path / "lost.safetensors").write_bytes(b"")
    cache.sweep()
    assert len(list(tmp_path.iterdir())) == 4
    old = time.time() - 2 * 24 * 3600
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    cache.sweep()
    assert len(list(tmp_path.iterdir())) == 2
