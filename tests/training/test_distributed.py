"""Several ranks learn what one would, and any number of them goes on where another number stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from curation.errors import UsageError
from tests.training.ranks import on_ranks
from tests.training.toy import ToyBatches, ToyTask
from training.distributed import find_world, joined
from training.loop import Trainer, TrainingError
from training.settings import OptimiserSettings, Training
from training.task import Role

_ADAM = OptimiserSettings(learning_rate=1e-2, warmup_steps=2, schedule="constant", clip_norm=0.5, eps=1e-4)


class _Double(ToyTask):
    """In float64, so that another order of adding up is no excuse."""

    def __init__(self, *, sharded: bool, muon: float | None) -> None:
        super().__init__(dropout=0.0, noise=0.0)
        self.model.double()
        self.roles = {"model": Role(self.model, dataclasses.replace(_ADAM, muon=muon), sharded=sharded)}

    def shard(self, module: torch.nn.Module) -> list[torch.nn.Module]:
        return [self.model[0]]


class _DoubleBatches(ToyBatches):
    def __iter__(self):  # type: ignore[no-untyped-def]
        for batch in super().__iter__():
            batch.x = batch.x.double()
            yield batch


def _train(
    folder: Path, steps: int, sharded: bool, global_batches: int, muon: float | None = None, offload: bool = False
) -> list[str]:
    with joined():
        world = find_world()
        batches = _DoubleBatches(size=2, rank=world.rank, world=world.size)
        training = Training(
            steps=steps,
            accumulate=global_batches // world.size,
            precision="fp32",
            ema=0.9,
            offload_optimiser=offload,
            judge_every=100,
            checkpoint_every=2,
        )
        task = _Double(sharded=sharded, muon=muon)
        Trainer(task, batches, training, folder=folder, world=world, say=lambda text: None).train()
        return batches.seen


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights" / "model.safetensors")


def _nearest(first: Path, second: Path) -> float:
    ours, theirs = _weights(first), _weights(second)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharded", "muon"), [(True, None), (False, None), (True, 1e-2)], ids=["fsdp2", "whole", "fsdp2 and muon"]
)
def test_two_ranks_learn_what_one_learns(sharded: bool, muon: float | None, tmp_path: Path) -> None:
    alone = _train(tmp_path / "one", 4, sharded, 2, muon)
    together = on_ranks(2, _train, tmp_path / "two", 4, sharded, 2, muon)
    assert sorted(together[0] + together[1], key=int) == alone  # the same samples, each once
    assert _nearest(tmp_path / "one", tmp_path / "two") < 1e-10


@pytest.mark.slow
def test_two_ranks_go_on_as_one_and_back(tmp_path: Path) -> None:
    _train(tmp_path / "one", 6, True, 2)
    seen = [key for keys in on_ranks(2, _train, tmp_path / "elastic", 2, True, 2) for key in keys]
    seen += _train(tmp_path / "elastic", 4, True, 2)
    seen += [key for keys in on_ranks(2, _train, tmp_path / "elastic", 6, True, 2) for key in keys]
    assert sorted(seen, key=int) == [str(i) for i in range(24)]  # 6 steps of 2 batches of 2, each sample once
    assert _nearest(tmp_path / "one", tmp_path / "elastic") < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharded", "muon"), [(True, None), (False, None), (True, 1e-2)], ids=["fsdp2", "whole", "fsdp2 and muon"]
)
def test_offloaded_ranks_learn_the_same_and_go_on_as_one_and_back(
    sharded: bool, muon: float | None, tmp_path: Path
) -> None:
    _train(tmp_path / "one", 6, sharded, 2, muon)
    on_ranks(2, _train, tmp_path / "offloaded", 2, sharded, 2, muon, True)
    _train(tmp_path / "offloaded", 4, sharded, 2, muon, True)
    on_ranks(2, _train, tmp_path / "offloaded", 6, sharded, 2, muon, True)
    assert _nearest(tmp_path / "one", tmp_path / "offloaded") < 1e-10


def test_ranks_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="context_parallel 2 does not divide 3 processes"):
        find_world(context_parallel=2)


def _share(folder: Path) -> tuple[bool, bool, str]:
    with joined():
        world = find_world(context_parallel=2)
        agreed = world.share("a"), world.share(str(world.rank))
        batches = _DoubleBatches(size=2, rank=world.rank, world=world.size)
        training = Training(steps=2, precision="fp32")
        trainer = Trainer(
            _Double(sharded=False, muon=None), batches, training, folder=folder, world=world, say=lambda text: None
        )
        try:
            trainer.train()
        except TrainingError as error:
            return *agreed, str(error)
        return *agreed, ""


@pytest.mark.slow
def test_ranks_that_share_samples_and_read_others_end_with_their_names(tmp_path: Path) -> None:
    first, second = on_ranks(2, _share, tmp_path)
    assert first[:2] == second[:2] == (True, False)
    assert 'in step 0, rank 0 [["0", "1"]]' in first[2]
    assert 'in step 0, rank 1 [["2", "3"]]' in second[2]
