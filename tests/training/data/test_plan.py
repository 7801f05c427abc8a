"""The order of an epoch: a function of samples, settings, seed and epoch, in which nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from shards.read import Catalogue, read_catalogue
from tests.training.data.made import row, write_tar
from training.data.plan import EpochPlan
from training.data.settings import Bucket, DataSettings

SHORT, LONG = Bucket(frames=9, height=64, width=64, batch_size=4), Bucket(frames=17, height=64, width=64, batch_size=3)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """30 shards of 10 clips; every third is long."""
    folder = tmp_path_factory.mktemp("plan")
    for shard in range(30):
        samples = [
            (f"{10 * shard + i:04d}", {"mp4": b"x", "txt": b"t", "json": row(20 if (10 * shard + i) % 3 else 12)})
            for i in range(10)
        ]
        write_tar(folder / f"{shard:06d}.tar", samples)
    return read_catalogue(folder)


def plan(catalogue: Catalogue, epoch: int = 0, **more: Any) -> EpochPlan:
    return EpochPlan(catalogue, DataSettings(shards="x", buckets=[SHORT, LONG], **more), epoch)


def read(one: EpochPlan, *, images: bool = False) -> list[int]:
    """The samples of all batches, in their order."""
    return [n for i in range(len(one)) for n in one[i].samples.tolist() if one[i].is_image == images]


@pytest.mark.parametrize("more", [{}, {"group": 4}, {"images": 0.3}, {"shuffle": False}, {"window": 1}], ids=str)
def test_every_sample_is_planned_once(catalogue: Catalogue, more: dict[str, Any]) -> None:
    one = plan(catalogue, **more)
    assert Counter(read(one)) == Counter(range(300))
    for i in range(len(one)):
        batch = one[i]
        assert set(one.assignment.bucket[batch.samples]) == {batch.bucket}
        assert len(batch.samples) <= (SHORT, LONG)[batch.bucket].batch_size
    short = [len(one[i].samples) for i in range(len(one)) if not one[i].is_image]
    assert sorted(short)[:1] == [2]  # 200 long clips in batches of 3
    assert len(short) == 25 + 67
    assert short.index(2) >= len(short) - 8


def test_the_same_plan_every_time_and_another_in_each_epoch(catalogue: Catalogue) -> None:
    assert read(plan(catalogue)) == read(plan(catalogue))
    assert read(plan(catalogue, 1)) != read(plan(catalogue))
    assert read(plan(catalogue, seed=1)) != read(plan(catalogue))
    assert read(plan(catalogue))[:10] == FIRST


FIRST = [116, 29, 23, 218, 32, 152, 113, 25, 155, 18]  # written down: another numpy must not change it


def test_reading_stays_within_a_window_of_shards(catalogue: Catalogue) -> None:
    """And batches are mixed within it."""
    one = EpochPlan(catalogue, DataSettings(shards="x", buckets=[SHORT], window=5), 0)
    order = np.array(read(one)) // 10
    for start in range(0, 300, 50):
        assert len(set(order[start : start + 50])) == 5
    assert len(set(order[:10])) > 2
    assert sorted(order[:50]) != order[:50].tolist()


def test_batches_of_one_bucket_come_in_groups(catalogue: Catalogue) -> None:
    """A group as large as the world gives all ranks the same shape at a step."""
    one = plan(catalogue, group=4, images=0.25)
    kinds = [(one[i].bucket, one[i].is_image) for i in range(len(one))]
    whole = len(kinds) // 4 * 4
    steps = [set(kinds[i : i + 4]) for i in range(0, whole, 4)]
    assert sum(len(step) == 1 for step in steps) >= len(steps) - 4  # remainders come at the end


def test_images_are_a_share_of_the_batches_and_spread(catalogue: Catalogue) -> None:
    one = plan(catalogue, images=0.25)
    images = [one[i].is_image for i in range(len(one))]
    assert sum(images) == round(25 / 3) + round(67 / 3)
    assert abs(sum(images[: len(images) // 2]) - sum(images) / 2) <= 3
    assert max(Counter(read(one, images=True)).values()) == 1
    several = plan(catalogue, images=0.75)
    assert set(Counter(read(several, images=True)).values()) <= {2, 3, 4}


def test_filled_batches_take_what_follows_in_their_bucket(catalogue: Catalogue) -> None:
    one = plan(catalogue, short="fill")
    sizes = [len(one[i].samples) == (SHORT, LONG)[one[i].bucket].batch_size for i in range(len(one))]
    assert all(sizes)
    assert sum(one[i].repeats for i in range(len(one))) == 1
    for i in range(len(one)):
        assert not set(one[i].samples[: len(one[i].samples)]) & set(one[i].following[:4])


def test_an_epoch_without_batches_is_empty_and_no_error(catalogue: Catalogue) -> None:
    one = EpochPlan(catalogue, DataSettings(shards="x", buckets=[Bucket(frames=99, height=64, width=64)]), 0)
    assert len(one) == 0
    assert one.counts() == {}
