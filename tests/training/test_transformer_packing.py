"""Packs and batches: full, each sample once, the same for everyone."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from curation.errors import UsageError
from training.transformer.packing import batches, fill, packs


def _lengths(count: int, *, seed: int = 0, images: float = 0.3) -> np.ndarray:
    """Clips of 1 to 13 latent frames of 1,350 tokens with a text of 226, and images."""
    random = np.random.default_rng(seed)
    frames = random.integers(1, 14, count)
    frames[random.random(count) < images] = 1
    return 226 + 1350 * frames


@pytest.mark.parametrize("images", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [2 * 226 + 13 * 1350, 2 * 17776, 70000])
def test_packs_are_filled_to_95_percent(tokens: int, images: float) -> None:
    lengths = _lengths(3000, images=images)
    assert fill(packs(lengths, tokens=tokens, seed=0, epoch=0), lengths, tokens=tokens) >= 0.95


@pytest.mark.parametrize("look_ahead", [1, 7, 256])
def test_each_sample_is_in_one_pack_that_holds_it(look_ahead: int) -> None:
    lengths = _lengths(500)
    found = packs(lengths, tokens=40000, seed=1, epoch=2, look_ahead=look_ahead)
    assert sorted(itertools.chain.from_iterable(found)) == [*range(500)]
    assert all(0 < lengths[group].sum() <= 40000 for group in found)


def test_packs_are_a_function_of_seed_and_epoch() -> None:
    lengths = _lengths(300)
    first = packs(lengths, tokens=40000, seed=1, epoch=0)
    assert first == packs(lengths, tokens=40000, seed=1, epoch=0)
    assert first != packs(lengths, tokens=40000, seed=1, epoch=1)
    assert first != packs(lengths, tokens=40000, seed=2, epoch=0)


def test_no_sample_waits_longer_than_the_window() -> None:
    """The oldest begins the next pack, so a long sample cannot be passed over for ever."""
    lengths = np.array([9] + [5] * 400)
    order = packs(lengths, tokens=10, seed=0, epoch=0, look_ahead=8)
    assert max(len(group) for group in order) == 2
    assert [0] in order


def test_a_sample_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(UsageError, match="the longest sample alone has 17776"):
        packs(np.array([100, 17776]), tokens=17000, seed=0, epoch=0)


def test_planning_is_fast() -> None:
    lengths = _lengths(20000)
    start = time.perf_counter()
    packs(lengths, tokens=70000, seed=0, epoch=0)
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("full", [False, True])
def test_batches_are_of_one_kind_and_hold_each_sample_once(full: bool) -> None:
    kinds = [0] * 11 + [1] * 5 + [2] * 3
    found = batches(kinds, [4, 2, 8], seed=0, epoch=0, following=2, fill=full)
    for group in found:
        assert len({kinds[at] for at in group}) == 1
    seen = list(itertools.chain.from_iterable(found))
    assert set(seen) == set(range(19))
    assert len(seen) == (12 + 6 + 8 if full else 19)
    assert found != batches(kinds, [4, 2, 8], seed=0, epoch=1, following=2, fill=full)


@pytest.mark.parametrize("epoch", range(4))
def test_ranks_compute_batches_of_one_kind_at_a_time(epoch: int) -> None:
    kinds = [0] * 22 + [1] * 10 + [2] * 9
    found = [kinds[group[0]] for group in batches(kinds, [2, 2, 2], seed=0, epoch=epoch, following=2)]
    steps = [found[at : at + 2] for at in range(0, len(found), 2)]
    assert [len(set(step)) for step in steps[:7]] == [1] * 7  # what is left over of a kind comes last
    assert len(found) == 11 + 5 + 5
