"""The order of packs over ranks, steps and resumes; and what a sample is named by in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from curation.errors import UsageError
from training.transformer.batches import Kept, LatentBatch, LatentBatches
from training.transformer.cache import Cache
from training.transformer.packing import Groups
from training.transformer.samples import Sample, View

_COUNT = 23


def _plan(epoch: int) -> Groups:
    """Packs of one to four samples, other ones in each epoch."""
    order = [(7 * i + epoch) % _COUNT for i in range(_COUNT)]
    groups, at = [], 0
    while at < _COUNT:
        size = 1 + (at + epoch) % 4
        groups.append(order[at : at + size])
        at += size
    return groups


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    latents, texts = Cache(tmp_path / "latents"), Cache(tmp_path / "texts")
    latents.write({f"l{i}": (torch.full((2, 1, 2, 2), float(i)), torch.ones(2, 1, 2, 2)) for i in range(_COUNT)})
    texts.write({f"t{i}": (torch.full((3, 4), float(i)),) for i in range(_COUNT)})
    return Kept(latents, texts)


def _samples() -> list[Sample]:
    return [Sample(f"l{i}", f"t{i}", None, View(i, 0, False), f"film {i}") for i in range(_COUNT)]


def _batches(kept: Kept, **more: Any) -> LatentBatches:
    return LatentBatches(_samples(), kept, plan=_plan, packed=True, decides=1, **more)


def _take(batches: LatentBatches, count: int) -> list[LatentBatch]:
    each = iter(batches)
    return [next(each) for _ in range(count)]


def test_ranks_share_the_packs_of_a_step_and_count_its_samples_alike(kept: Kept) -> None:
    """Two ranks with two packs each, or one with four: the same packs, with the same places in the step."""
    alone = _take(_batches(kept, accumulate=4), 12)
    ranks = [_take(_batches(kept, rank=rank, world=2, accumulate=2), 6) for rank in range(2)]
    together = [ranks[i % 2][i // 2] for i in range(12)]
    assert [(b.keys, b.indices, b.total) for b in alone] == [(b.keys, b.indices, b.total) for b in together]
    for step in range(3):
        batches = alone[4 * step : 4 * step + 4]
        assert [i for batch in batches for i in batch.indices] == [*range(batches[0].total)]


def test_an_epoch_holds_each_sample_once_over_all_ranks(kept: Kept) -> None:
    count = len(_plan(0)) + len(_plan(1))
    seen = [key for batch in _take(_batches(kept), count) for key in batch.keys]
    assert sorted(seen) == sorted([f"l{i}" for i in range(_COUNT)] * 2)


def test_a_state_goes_on_with_another_number_of_ranks(kept: Kept) -> None:
    whole = [batch.keys for batch in _take(_batches(kept, accumulate=4), 16)]
    first = _batches(kept, accumulate=4)
    _take(first, 8)
    ranks = []
    for rank in range(2):
        batches = _batches(kept, rank=rank, world=2, accumulate=2)
        batches.load_state_dict(first.state_dict())
        ranks.append([batch.keys for batch in _take(batches, 4)])
    assert [ranks[i % 2][i // 2] for i in range(8)] == whole[8:]


def test_reading_ahead_is_not_counted(kept: Kept) -> None:
    states = []
    for prefetch in (1, 9):
        batches = _batches(kept, prefetch=prefetch)
        _take(batches, 5)
        states.append(batches.state_dict())
    assert states[0] == states[1]


def test_a_state_of_other_samples_is_refused(kept: Kept) -> None:
    other = LatentBatches(_samples()[:-1], kept, plan=lambda epoch: [[0]], packed=True, decides=1)
    with pytest.raises(UsageError, match="begun on other samples"):
        other.load_state_dict(_batches(kept).state_dict())


def test_tensors_are_those_of_the_sample(kept: Kept) -> None:
    (batch,) = _take(_batches(kept), 1)
    for key, loaded in zip(batch.keys, batch.samples, strict=True):
        assert float(loaded.mean[0, 0, 0, 0]) == float(key[1:])
        assert loaded.text is not None
        assert float(loaded.text[0, 0]) == float(key[1:])


def test_what_is_half_written_is_not_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write({"a": (torch.zeros(2),)})
    (file,) = tmp_path.glob("*.parquet")
    file.unlink()
    assert "a" not in Cache(tmp_path)
    cache = Cache(tmp_path)
    cache.write({"a": (torch.ones(2),)})
    cache.note_bad({"b": "undecodable"})
    again = Cache(tmp_path)
    assert again.read("a")[0].tolist() == [1.0, 1.0]
    assert again["b"].bad == "undecodable"
    assert again.missing(["c", "a", "c"]) == ["c"]
