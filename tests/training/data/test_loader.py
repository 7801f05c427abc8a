"""Batches hold exactly the frames that were asked for, and each sample of an epoch once, whoever reads it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.errors import UsageError
from shards.read import read_catalogue
from tests.training.data.made import CLIP, FPS, numbers, read_tar, settings, take
from training.data.loader import Batch, Loader, open_catalogue
from training.data.settings import Bucket, DataSettings


def same(left: Batch, right: Batch) -> bool:
    """Bit for bit."""
    return (
        (left.epoch, left.index, left.keys, left.captions, left.crops, left.rows)
        == (right.epoch, right.index, right.keys, right.captions, right.crops, right.rows)
        and bool((left.video == right.video).all())
        and bool((left.times_s == right.times_s).all())
    )


def test_a_span_is_of_consecutive_frames_and_the_caption_is_its_own(curated: Path) -> None:
    with Loader(settings(curated), workers=0, epochs=1) as loader:
        batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    starts = set()
    for batch in batches:
        assert batch.video.shape == (len(batch), 3, 9, 64, 384)
        for shown, caption, row, times_s in zip(numbers(batch), batch.captions, batch.rows, batch.times_s, strict=True):
            first = shown[0]
            assert shown == list(range(first, first + 9))
            assert caption == f"film {first // 100}" == row["caption"]
            start = first % 100 - round(row["start_s"] * FPS)
            assert 0 <= start <= CLIP - 9
            np.testing.assert_allclose(times_s, (start + np.arange(9)) / FPS, atol=1e-5)
            starts.add(start)
    assert len(starts) > 4  # drawn, not always the first
    assert {key for batch in batches for key in batch.keys} == keys_of(curated)


def keys_of(output: Path) -> set[str]:
    return {key for tar in (output / "shards").glob("*.tar") for key in read_tar(tar)}


def test_every_start_is_possible_the_last_one_too(curated: Path) -> None:
    """A clip of as many frames as the bucket fits it, and gives all of its frames."""
    with Loader(settings(curated, frames=CLIP), workers=0, epochs=1) as loader:
        shown = [one for batch in loader for one in numbers(batch)]
    assert len(shown) == 15
    assert all(one == list(range(one[0], one[0] + CLIP)) and one[0] % 20 == 0 for one in shown)
    with Loader(settings(curated, frames=CLIP - 1, batch_size=15), workers=0, epochs=8) as loader:
        assert {one[0] % 20 for batch in loader for one in numbers(batch)} == {0, 1}


def test_frames_are_picked_by_time(curated: Path) -> None:
    with Loader(settings(curated, frames=5, fps=8.0), workers=0, epochs=1) as loader:
        for batch in loader:
            for shown, times_s in zip(numbers(batch), batch.times_s, strict=True):
                assert np.diff(shown).tolist() == [3] * 4
                np.testing.assert_allclose(np.diff(times_s), 1 / 8)
    with Loader(settings(curated, frames=5, fps=10.0), workers=0, epochs=1) as loader:
        for batch in loader:
            for shown in numbers(batch):  # what is on the screen at 0, 2.4, 4.8, 7.2, 9.6 frames
                assert np.subtract(shown, shown[0]).tolist() == [0, 2, 4, 7, 9]


def test_images_are_frames_of_the_same_clips(curated: Path) -> None:
    with Loader(settings(curated, batch_size=2, images=0.5, image_batch_size=3), workers=0, epochs=1) as loader:
        batches = list(loader)
    images = [batch for batch in batches if batch.is_image]
    assert (len(images), len(batches)) == (8, 16)
    assert all(batch.video.shape == (3, 3, 1, 64, 384) for batch in images)
    for batch in images:
        for (number,), caption in zip(numbers(batch), batch.captions, strict=True):
            assert caption == f"film {number // 100}"
    kinds = [batch.is_image for batch in batches]
    assert 2 <= sum(kinds[:8]) <= 6  # among the clips, not after them


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(curated: Path, workers: int) -> None:
    options = settings(curated, images=0.2, crop="random", zoom=1.5, flip=0.5)
    with Loader(options, workers=0, epochs=2) as loader:
        alone = list(loader)
    with Loader(options, workers=workers, epochs=2) as loader:
        together = list(loader)
    assert len(alone) == len(together) == 10
    assert all(same(left, right) for left, right in zip(alone, together, strict=True))


def test_epochs_differ_and_repeat(curated: Path) -> None:
    with Loader(settings(curated, batch_size=15), workers=0, epochs=2) as loader:
        first, second = list(loader)
    assert set(first.keys) == set(second.keys)
    assert first.keys != second.keys
    assert dict(zip(first.keys, first.times_s[:, 0], strict=True)) != dict(
        zip(second.keys, second.times_s[:, 0], strict=True)
    )
    with Loader(settings(curated, batch_size=15), workers=0) as loader:
        assert all(same(left, right) for left, right in zip([first, second], take(loader, 2), strict=True))
    with Loader(settings(curated, batch_size=15, seed=1), workers=0) as loader:
        assert take(loader, 1)[0].keys != first.keys


def test_two_ranks_to_one_and_back_read_each_sample_of_an_epoch_once(curated: Path) -> None:
    options, read = settings(curated, batch_size=1), list[Batch]()

    def go_on(world: int, steps: int, state: dict[str, Any] | None) -> dict[str, Any]:
        states = []
        for rank in range(world):
            with Loader(options, rank=rank, world=world, workers=0) as loader:
                if state is not None:
                    loader.load_state_dict(json.loads(json.dumps(state)))
                read.extend(take(loader, steps))
                states.append(loader.state_dict())
        assert all(one == states[0] for one in states)  # any rank may save it
        return states[0]

    state = go_on(2, 3, None)
    state = go_on(1, 5, state)
    state = go_on(2, 2, state)
    assert Counter(batch.keys[0] for batch in read) == Counter(keys_of(curated))
    assert state["epoch"] == 1
    assert state["batch"] == 0
    go_on(2, 8, state)  # over the end of an epoch: 15 batches and one of the next
    assert sorted((batch.epoch, batch.index) for batch in read[15:]) == [*((1, i) for i in range(15)), (2, 0)]
    with Loader(options, workers=0) as loader:
        whole = {(batch.epoch, batch.index): batch for batch in take(loader, 31)}
    assert all(same(batch, whole[batch.epoch, batch.index]) for batch in read)


def test_resuming_in_the_middle_is_bit_exact_and_counts_only_what_was_handed_out(curated: Path) -> None:
    options = settings(curated, batch_size=2, images=0.3, flip=0.5, prefetch=6)
    with Loader(options, workers=2) as loader:
        whole = take(loader, 14)
    with Loader(options, workers=2) as loader:
        take(loader, 5)  # many more are in work
        state = loader.state_dict()
    with Loader(options, workers=1) as loader:
        loader.load_state_dict(state)
        rest = take(loader, 9)
    assert all(same(left, right) for left, right in zip(rest, whole[5:], strict=True))


def test_an_iterator_that_is_left_goes_on_where_it_was(curated: Path) -> None:
    with Loader(settings(curated, batch_size=2), workers=1, epochs=1) as loader:
        first = take(loader, 3)
        rest = list(loader)
    assert sorted(key for batch in first + rest for key in batch.keys) == sorted(keys_of(curated))


def test_a_state_of_other_data_or_settings_is_refused(curated: Path, tmp_path: Path) -> None:
    with Loader(settings(curated), workers=0) as loader:
        state = loader.state_dict()
    for other in (settings(curated, seed=1), settings(curated, batch_size=3), settings(curated, flip=0.5)):
        with Loader(other, workers=0) as loader, pytest.raises(UsageError, match="other shards or other data settings"):
            loader.load_state_dict(state)
    shutil.copytree(curated / "shards", tmp_path / "moved")
    with Loader(settings(tmp_path / "moved", workers=5, prefetch=1), workers=0) as loader:
        loader.load_state_dict(state)  # the same samples elsewhere, read by other processes
    next((tmp_path / "moved").glob("*.tar")).unlink()
    (tmp_path / "moved" / "index.json").unlink()
    with (
        Loader(settings(tmp_path / "moved"), workers=0) as loader,
        pytest.raises(UsageError, match="other shards"),
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize("change", ["shard", "caption_bytes"])
def test_a_state_is_refused_where_samples_moved_or_lost_their_captions(curated: Path, change: str) -> None:
    options = settings(curated, captions="required")
    catalogue = open_catalogue(options)
    with Loader(options, workers=0, catalogue=catalogue) as loader:
        state = loader.state_dict()
    values = catalogue.table[change].to_pylist()
    values[0] = 1 - values[0] if change == "shard" else 0
    column = pa.array(values, catalogue.table.schema.field(change).type)
    place = catalogue.table.column_names.index(change)
    other = dataclasses.replace(catalogue, table=catalogue.table.set_column(place, change, column))
    with Loader(options, workers=0, catalogue=other) as loader, pytest.raises(UsageError, match="other shards"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_make_equal_steps_where_epochs_end(curated: Path, world: int) -> None:
    options = settings(curated, batch_size=1)
    ranks = []
    for rank in range(world):
        with Loader(options, rank=rank, world=world, workers=0, epochs=1) as loader:
            ranks.append(list(loader))
            assert len(ranks[-1]) == loader.steps()
    assert {len(batches) for batches in ranks} == {-(-15 // world)}
    real = [batch.keys[0] for batches in ranks for batch in batches if not batch.is_padding]
    assert Counter(real) == Counter(keys_of(curated))
    assert [batch.is_padding for batch in ranks[-1]] == [False] * (len(ranks[-1]) - 1) + [True]


def test_short_batches_are_filled_if_shapes_must_not_change(curated: Path) -> None:
    with Loader(settings(curated, short="fill"), workers=0, epochs=1) as loader:
        batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    assert [batch.repeats for batch in batches] == [0, 0, 0, 1]
    assert {key for batch in batches for key in batch.keys} == keys_of(curated)
    assert batches[-1].keys[-1] == batches[0].keys[0]


def test_the_crop_is_what_is_said(curated: Path) -> None:
    bucket = Bucket(frames=3, height=32, width=48, batch_size=15)
    plain = settings(curated, buckets=[Bucket(frames=3, height=32, width=192, batch_size=15)])
    options = settings(curated, buckets=[bucket], flip=0.5)
    with Loader(plain, workers=0, epochs=1) as loader:
        whole = next(iter(loader))
    with Loader(options, workers=0, epochs=1) as loader:
        batch = next(iter(loader))
    assert batch.keys == whole.keys
    assert len({crop.left for crop in batch.crops}) > 5
    assert {crop.flipped for crop in batch.crops} == {True, False}
    for crop, cut, full in zip(batch.crops, batch.video, whole.video, strict=True):
        assert (crop.height, crop.width, crop.top) == (32, 192, 0)
        assert 0 <= crop.left <= 192 - 48
        expected = full[..., crop.left : crop.left + 48]
        assert ((expected.flip(-1) if crop.flipped else expected) == cut).all()
    with Loader(settings(curated, buckets=[bucket], crop="center"), workers=0, epochs=1) as loader:
        assert {crop.left for crop in next(iter(loader)).crops} == {72}


def test_zoom_takes_a_part_of_a_picture_that_is_larger_than_needed_but_never_enlarges_it(curated: Path) -> None:
    bucket = Bucket(frames=1, height=16, width=96, batch_size=15)
    with Loader(settings(curated, buckets=[bucket], zoom=8.0), workers=0, epochs=2) as loader:
        heights = [crop.height for batch in loader for crop in batch.crops]
    assert min(heights) >= 16
    assert max(heights) <= 64
    assert len(set(heights)) > 10


def test_rules_decide_what_is_read(curated: Path) -> None:
    from curation.rules import Rule

    options = settings(curated, keep={"start_s": Rule(max=0.0)}, batch_size=15)
    with Loader(options, workers=0, epochs=1) as loader:
        assert [row["start_s"] for batch in loader for row in batch.rows] == [0.0] * 5
    with pytest.raises(UsageError, match="'start_s'"):
        Loader(settings(curated, keep={"starts": Rule(max=0.0)}), workers=0)


def test_a_given_catalogue_is_not_read_again(curated: Path) -> None:
    catalogue = read_catalogue(curated)
    with Loader(settings("/nowhere"), workers=0, catalogue=catalogue, epochs=1) as loader:
        assert sum(len(batch) for batch in loader) == 15


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 1)])
def test_a_rank_outside_of_the_world_is_refused(curated: Path, rank: int, world: int) -> None:
    with pytest.raises(UsageError, match="none of a world"):
        Loader(settings(curated), rank=rank, world=world, workers=0)


def test_settings_are_read_from_yaml_and_mistakes_have_their_place(tmp_path: Path) -> None:
    from curation.config import Document
    from curation.errors import ConfigError

    path = tmp_path / "train.yaml"
    path.write_text(
        "data:\n  shards: out\n  images: 0.2\n  keep: {motion_score: {min: 0.1}}\n"
        "  buckets:\n    - {frames: 17, height: 256, width: 256, batch_size: 2}\n"
    )
    data = Document(path).validate(DataSettings, ("data",))
    assert data.buckets == [Bucket(frames=17, height=256, width=256, batch_size=2)]
    assert data.keep["motion_score"].min == 0.1
    path.write_text("data:\n  shards: out\n  buckets:\n    - {frames: 0, height: 256, width: 256}\n")
    with pytest.raises(ConfigError, match=r"train\.yaml:4:8: .*frames"):
        Document(path).validate(DataSettings, ("data",))
