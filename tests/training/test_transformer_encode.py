"""What is encoded, and what is not encoded again."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import CutroomError, UsageError
from tests.training.data.made import sample, write_tar
from tests.training.transformer_made import TINY_VAE, quiet, write_config, write_models, write_shards
from training.data.decode import Bad
from training.data.held_out import open_parts
from training.distributed import World
from training.transformer.cache import Cache
from training.transformer.contents import contents, note_contents
from training.transformer.encode import LatentEncoder, encode_latents, encode_texts, together
from training.transformer.preflight import look_ahead
from training.transformer.prepare import Ready, get_ready
from training.transformer.run import load, train_transformer
from training.transformer.samples import Sample
from training.transformer.text import TextEncoder
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
    return get_ready(config, cache=place / "cache", before=None, world=World(), say=said.append), said


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


def test_equal_weights_of_a_vae_that_computes_otherwise_have_another_name() -> None:
    torch.manual_seed(0)
    vaes = [VAE(TINY_VAE), VAE(dataclasses.replace(TINY_VAE, norm_eps=1e-3))]
    vaes[1].load_state_dict(vaes[0].state_dict())
    rest = {"chunks": None, "tiles": None, "precision": "fp32", "noise": None, "device": torch.device("cpu")}
    first, second = (LatentEncoder(vae, **rest).name for vae in vaes)  # type: ignore[arg-type]
    assert first != second


def _scored(place: Path, **scores: object) -> None:
    """One more clip, with scores in its row."""
    key, parts = sample(60, 20, video_id="v60", **scores)
    write_tar(place / "shards" / "2.tar", [(key, parts)])


def test_scores_stand_behind_the_captions_of_the_clips_that_have_them(place: Path) -> None:
    _scored(place, motion_score=0.123, camera_motion=["pan_left"], aesthetic_score=None)
    ready, said = _prepare(place, "text.tag_dropout=0")
    assert _encoded(said) == (13, 13)
    captions = {one.caption for one in ready.samples}
    assert "film 60, motion score: 0.12, camera motion: pan left" in captions
    assert len([one for one in captions if one.endswith("of a field")]) == 12
    # Texts alone are others where scores are no longer said, and those of one clip only.
    assert _encoded(_prepare(place)[1]) == (0, 1)
    assert _encoded(_prepare(place, "text.tag_dropout=0")[1]) == (0, 0)


def test_some_scores_are_left_out_and_always_the_same(place: Path) -> None:
    samples = []
    for number in range(60, 90):
        key, parts = sample(number, 20, video_id=f"v{number}", motion_score=number / 100)
        samples.append((key, parts))
    write_tar(place / "shards" / "2.tar", samples)
    said = [
        {one.caption for one in _prepare(place, "text.tag_dropout=0.5", "data.flip=0")[0].samples} for _ in range(2)
    ]
    assert said[0] == said[1]
    assert 5 < sum("motion score" in one for one in said[0]) < 25  # of 30; 4 standard errors


def test_scores_that_no_clip_has_are_a_mistake_that_is_said_first(place: Path) -> None:
    stages = load(place / "own.yaml", changes=[*_SETTINGS, f"text.start={place / 'words'}", "text.tag_dropout=0.3"])
    with pytest.raises(UsageError, match=r"tag_dropout 0\.3: no clip has aesthetic_score"):
        look_ahead(stages)
    with pytest.raises(UsageError, match=r"tag_dropout 1: a share below 1"):
        load(place / "own.yaml", changes=["text.tag_dropout=1.0"])


def test_a_later_stage_that_says_scores_that_no_clip_has_is_a_mistake_before_the_first_learns(place: Path) -> None:
    with (place / "own.yaml").open("a") as file:
        file.write("stages: [{name: one}, {name: two, text: {tag_dropout: 0.3}}]\n")
    with pytest.raises(UsageError, match="no clip has"):
        train_transformer(place / "own.yaml", place / "out", changes=["data.images=0"], say=quiet)
    assert not (place / "out").exists()


def test_the_words_of_all_tags_and_all_numbers_are_known(place: Path) -> None:
    config = load(place / "own.yaml", changes=_SETTINGS)[0].config
    ready = get_ready(config, cache=place / "cache", before=None, world=World(), say=quiet)
    tokenizer = AutoTokenizer.from_pretrained(ready.parts.text[1])
    said = tokenizer("film 1, aesthetic score: 5.5, motion score: 0.37, camera motion: pan left and zoom out")
    assert tokenizer.unk_token_id not in said.input_ids
    assert tokenizer.unk_token_id in tokenizer("a whale").input_ids


def test_a_row_by_others_costs_nothing(place: Path) -> None:
    key, parts = sample(60, 20, video_id="v60")
    for number, text in enumerate(["[" * 100_000, '{"motion_score": 1' + "0" * 400 + "}", "[]"]):
        write_tar(place / "shards" / f"{2 + number}.tar", [(f"{key}-{number}", {**parts, "json": text.encode()})])
    _prepare(place, "data.captions=optional")
    _scored(place, motion_score=0.5)
    _prepare(place, "text.tag_dropout=0")


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
        posterior = vae.encode(video.expand(4, -1, -1, -1, -1).float() / 127.5 - 1, chunks=Chunks())  # as many as it is
    loaded = ready.kept.load(one)
    assert torch.equal(loaded.mean, posterior.mean[0].half())
    assert torch.equal(loaded.std, posterior.std[0].half())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(5, 32, 48), (1, 32, 48), (5, 320, 344)])
def test_a_clip_has_the_same_latents_with_whomever_it_is_encoded(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    vae = VAE(TINY_VAE)
    encoder = LatentEncoder(
        vae, chunks=Chunks(), tiles=None, precision="fp32", noise=(-3.0, 0.5), device=torch.device("cpu")
    )
    assert together(torch.empty(3, *size)) == (1 if size[1] > 300 else 4)
    videos = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(6)]
    keys = [f"{number:032x}" for number in range(6)]
    clips, pictures = encoder.clips(videos), encoder.first_frames(videos, keys)
    assert len(clips) == len(pictures) == 6
    for i in (0, 3, 5):
        for alone, among in (
            (encoder.clips([videos[i]]), clips),
            (encoder.first_frames([videos[i]], [keys[i]]), pictures),
        ):
            assert torch.equal(alone[0][0], among[i][0])
            assert torch.equal(alone[0][1], among[i][1])
        with torch.no_grad():
            posterior = vae.encode(videos[i][None].float() / 127.5 - 1, chunks=Chunks())
        assert torch.allclose(clips[i][0], posterior.mean[0].half(), atol=1e-2)
    assert encoder.clips([]) == []


@pytest.mark.parametrize("noise", [(-3.0, 0.5), None])
def test_first_frames_are_encoded_with_noise_of_the_asked_strength(
    noise: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, seen = VAE(TINY_VAE), list[torch.Tensor]()
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x, **more: (seen.append(x), encode(x, **more))[1])
    encoder = LatentEncoder(vae, chunks=Chunks(), tiles=None, precision="fp32", noise=noise, device=torch.device("cpu"))
    videos = [torch.randint(256, (3, 5, 32, 48), dtype=torch.uint8) for _ in range(200)]
    encoder.first_frames(videos, [f"{number:015x}" for number in range(200)])
    added = torch.cat(seen) - torch.stack(videos)[:, :, :1] / 127.5 + 1
    if noise is None:
        assert not added.any()
        return
    strengths = added.flatten(1).std(dim=1).log()
    assert abs(float(strengths.mean()) - noise[0]) < 0.15
    assert abs(float(strengths.std()) - noise[1]) < 0.1


def test_a_clip_that_cannot_be_decoded_costs_itself_and_only_once(place: Path) -> None:
    key, parts = sample(50, 20, video_id="v50")
    write_tar(place / "shards" / "2.tar", [(key, {**parts, "mp4": parts["mp4"][:300]})])
    ready, said = _prepare(place)
    assert any("undecodable" in line or "bad" in line for line in said)
    assert len(ready.samples) == 12
    assert _encoded(_prepare(place)[1]) == (0, 0)


def test_what_may_pass_is_tried_again_and_what_is_left_out_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.transformer import encode

    decoded, hiccups = encode._decoded, [1]

    def failing(samples: Sequence[Any], *rest: Any) -> Iterator[Any]:
        for at, (one, video, made) in enumerate(decoded(samples, *rest)):
            yield one, video, Bad("unreadable", "the store is away") if at < hiccups[0] else made

    monkeypatch.setattr(encode, "_decoded", failing)
    hiccups[0] = 2

    def first_time_only(samples: Sequence[Any], *rest: Any) -> Iterator[Any]:
        yield from failing(samples, *rest)
        hiccups[0] = 0

    monkeypatch.setattr(encode, "_decoded", first_time_only)
    ready, _ = _prepare(place)
    assert len(ready.samples) == 12
    shutil.rmtree(place / "cache")
    hiccups[0] = 2
    monkeypatch.setattr(encode, "_decoded", failing)
    assert len(_prepare(place)[0].samples) == 10
    hiccups[0] = 0
    ready, said = _prepare(place)
    assert len(ready.samples) == 10
    assert any("2 samples could not be read earlier" in line and "the store is away" in line for line in said)
    for file in (place / "cache" / "latents").glob("bad-*"):
        file.unlink()
    assert len(_prepare(place)[0].samples) == 12


def test_each_rank_notes_its_share_of_the_shards(place: Path) -> None:
    config = load(place / "own.yaml", changes=_SETTINGS)[0].config
    catalogue, _ = open_parts(config.data, 0.0)
    for rank, count in ((0, 1), (1, 2)):
        note_contents(catalogue, folder=place / "noted", rank=rank, size=2)
        assert len(list((place / "noted").glob("*.parquet"))) == count
    assert contents(catalogue, folder=place / "noted") == contents(catalogue, folder=place / "others")


def test_a_text_is_encoded_alike_with_whomever(place: Path) -> None:
    _prepare(place)
    whole = Cache(place / "cache" / "texts")
    write_shards(place / "shards", captions={4: "film 4 in the rain"})
    _prepare(place)
    alone = Cache(place / "cache" / "texts")
    (key,) = alone._entries.keys() - whole._entries.keys()
    one = alone.read(key)[0].clone()
    shutil.rmtree(place / "cache")
    _prepare(place)
    assert torch.equal(Cache(place / "cache" / "texts").read(key)[0], one)


def test_encode_only_leaves_nothing_for_the_training_to_encode(place: Path) -> None:
    options = ["train", "transformer", str(place / "own.yaml"), "--output", str(place / "out"), "--encode-only"]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.stdout.endswith("without --encode-only trains\n")
    assert "Weights:" not in done.stdout
    assert not (place / "out" / "checkpoints").exists()
    said: list[str] = []
    train_transformer(place / "own.yaml", place / "out", changes=["training.steps=1"], say=said.append)
    assert _encoded(said) == (0, 0)
    assert list((place / "out" / "checkpoints").iterdir())


def test_the_scale_makes_latents_of_deviation_one_about_the_mean_of_each_channel(place: Path) -> None:
    vae = VAE.from_pretrained(place / "models" / "vae")
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[:4] += 100.0  # of the means: a constant is no signal
    vae.save_pretrained(place / "models" / "vae")
    ready, _ = _prepare(place, "data.buckets=[{frames: 5, height: 16, width: 32}]")
    loaded = [ready.kept.load(one) for one in ready.samples]
    means = torch.stack([one.mean for one in loaded]).double()  # B, C, T, H, W
    assert means.mean() > 90
    noise = torch.stack([one.std for one in loaded]).double().square().mean()
    variance = means.var((0, 2, 3, 4), correction=0).mean() + noise
    assert ready.parts.vae_config.scaling_factor == pytest.approx(float(variance) ** -0.5, rel=1e-3)


class _Rank(World):
    """One of two ranks, each in a thread of this process."""

    meeting: ClassVar[threading.Barrier]

    def wait(self) -> None:
        self.meeting.wait(timeout=60)


class _Words:
    """Texts by their lengths."""

    encoder = torch.nn.Identity()

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[[float(len(text))]] for text in texts])


def _both(work: Callable[[World], None]) -> None:
    _Rank.meeting = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, _Rank(rank=rank, size=2)) for rank in range(2)]:
            done.result()


def test_ranks_encode_everything_where_another_training_writes_between_two_that_open_the_cache(place: Path) -> None:
    ready, _ = _prepare(place)
    data = load(place / "own.yaml", changes=_SETTINGS)[0].config.data
    catalogue, _ = open_parts(data, 0.0)
    vae = VAE.from_pretrained(place / "models" / "vae")
    encoder = LatentEncoder(vae, chunks=Chunks(), tiles=None, precision="fp32", noise=None, device=torch.device("cpu"))

    def latents(samples: Sequence[Sample], cache: Cache, world: World) -> None:
        encode_latents(samples, catalogue, data, encoder=encoder, cache=cache, world=world, say=quiet)

    def texts(samples: Sequence[Sample], cache: Cache, world: World) -> None:
        encode_texts(samples, load=lambda: cast("TextEncoder", _Words()), cache=cache, world=world, say=quiet)

    for name, encode in (("latents", latents), ("texts", texts)):
        first = Cache(place / name)
        encode(ready.samples[:3], Cache(place / name), World())
        caches = [first, Cache(place / name)]
        _both(lambda world, caches=caches, encode=encode: encode(ready.samples, caches[world.rank], world))
        for cache in caches:
            assert not cache.missing(one.latent if name == "latents" else str(one.text) for one in ready.samples)


def test_what_another_training_could_not_read_is_not_lost_to_one_that_has_it(tmp_path: Path) -> None:
    for folder, bad_first in ((tmp_path / "a", True), (tmp_path / "b", False)):
        cache, other = Cache(folder), Cache(folder)
        for bad in (True, False) if bad_first else (False, True):
            other.note_bad({"key": "the store was away"}) if bad else other.write({"key": (torch.ones(2),)})
            cache.refresh()
        for one in (cache, Cache(folder)):
            assert one["key"].bad is None
            assert torch.equal(one.read("key")[0], torch.ones(2))


def test_ranks_that_do_not_see_each_others_cache_say_so(place: Path) -> None:
    ready, _ = _prepare(place)

    def encode(world: World) -> None:
        cache = Cache(place / f"of-{world.rank}")
        encode_texts(ready.samples, load=lambda: cast("TextEncoder", _Words()), cache=cache, world=world, say=quiet)

    with pytest.raises(CutroomError, match=r"captions are not in .*of-0, .* let every machine see the same folder"):
        _both(encode)


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
