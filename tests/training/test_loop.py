"""The loop: every sample counts once, and a training that was stopped ends as if it had not been."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from curation.errors import UsageError
from tests.training.toy import ToyBatches, ToyTask
from training.distributed import World
from training.loop import Trainer, TrainingError
from training.optimiser import Average, factor_at, orthogonal
from training.settings import OptimiserSettings, Training


def _train(
    folder: Path, *, task: ToyTask | None = None, batches: ToyBatches | None = None, **changes: object
) -> Trainer:
    settings = {"steps": 8, "precision": "fp32", "ema": 0.9, "log_every": 1, "judge_every": 4, "checkpoint_every": 4}
    training = Training(**{**settings, **changes})  # type: ignore[arg-type]
    trainer = Trainer(
        task or ToyTask(), batches or ToyBatches(), training, folder=folder, world=World(), say=lambda text: None
    )
    trainer.train()
    return trainer


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights" / "model.safetensors")


def _figures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_four_and_four_steps_are_eight_bit_for_bit(tmp_path: Path) -> None:
    _train(tmp_path / "whole")
    _train(tmp_path / "halves", steps=4)
    _train(tmp_path / "halves", steps=8)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "halves"))
    losses = [[row["loss"] for row in _figures(tmp_path / name) if "loss" in row] for name in ("whole", "halves")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def test_it_learns_and_the_kept_weights_are_the_average(tmp_path: Path) -> None:
    task = ToyTask(dropout=0.0, noise=0.0)
    _train(tmp_path, task=task, steps=300, judge_every=100, checkpoint_every=100)
    judged = [row["held_out_error"] for row in _figures(tmp_path) if "held_out_error" in row]
    assert len(judged) == 4  # before the first step, too
    assert judged[-1] < judged[0] / 50
    # Constant learning: the average lags behind, and it is the average that is kept.
    assert not _equal(_weights(tmp_path), dict(task.model.state_dict()))


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    for name, size, accumulate in (("large", 8, 1), ("small", 2, 4)):
        task = ToyTask(dropout=0.0, noise=0.0)
        _train(tmp_path / name, task=task, batches=ToyBatches(size=size), accumulate=accumulate, ema=None)
    large, small = _weights(tmp_path / "large"), _weights(tmp_path / "small")
    assert all(torch.allclose(large[name], small[name], atol=1e-6) for name in large)


def test_batches_of_unlike_sizes_weigh_each_sample_the_same(tmp_path: Path) -> None:
    class Uneven(ToyBatches):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for batch in super().__iter__():
                yield type(batch)(batch.keys[:1], batch.x[:1])
                yield type(batch)(batch.keys[1:], batch.x[1:])

    for name, batches, accumulate in (("whole", ToyBatches(), 1), ("uneven", Uneven(), 2)):
        _train(tmp_path / name, task=ToyTask(dropout=0.0, noise=0.0), batches=batches, accumulate=accumulate, ema=None)
    whole, uneven = _weights(tmp_path / "whole"), _weights(tmp_path / "uneven")
    assert all(torch.allclose(whole[name], uneven[name], atol=1e-6) for name in whole)


def test_gradients_are_clipped_once_per_step(tmp_path: Path) -> None:
    optimiser = OptimiserSettings(learning_rate=1e-2, clip_norm=1e-3)
    task = ToyTask(dropout=0.0, noise=0.0, optimiser=optimiser)
    lengths = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: None = None) -> None:
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        lengths.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
        original(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        _train(tmp_path, task=task, steps=3, accumulate=3)
    assert lengths == pytest.approx([1e-3] * 3, rel=1e-3)


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path) -> None:
    task = ToyTask()
    task.poison = {0, 1}
    before = {name: weight.clone() for name, weight in task.model.state_dict().items()}
    _train(tmp_path, task=task, steps=2)
    assert _equal(before, dict(task.model.state_dict()))
    assert [row["loss"] for row in _figures(tmp_path) if "loss" in row] == [None, None]  # JSON knows no NaN


def test_gradients_that_stay_infinite_end_the_training(tmp_path: Path) -> None:
    task = ToyTask()
    task.poison = set(range(100))
    with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
        _train(tmp_path, task=task, steps=50, max_skipped=2)


def test_another_model_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, steps=4)
    task = ToyTask()
    task.config = {"widths": (16, 1)}
    with pytest.raises(UsageError, match="another model"):
        _train(tmp_path, task=task)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    _train(tmp_path, steps=20, checkpoint_every=4, keep_checkpoints=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000016", "step-00000020"]


_DIES_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import training.checkpoint as checkpoint
from tests.training.test_loop import _train
folder, saved = Path(sys.argv[1]), checkpoint.save
def save(state, checkpoint_id):
    if "00000008" in checkpoint_id.name:
        (checkpoint_id / "torn").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    saved(state, checkpoint_id=checkpoint_id)
checkpoint.save = save
_train(folder, steps=12)
"""


def test_kill_9_during_a_checkpoint_loses_only_that_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DIES_WHILE_SAVING, str(tmp_path / "killed")]
    died = subprocess.run(command, check=False, capture_output=True, text=True, cwd=os.getcwd())
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert _train(tmp_path / "killed", steps=12).state.step == 12
    _train(tmp_path / "whole", steps=12)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "killed"))
    steps = [row["step"] for row in _figures(tmp_path / "killed") if "loss" in row]
    assert steps == list(range(1, 13))  # those done twice are told once
    assert not list((tmp_path / "killed" / "checkpoints").glob("*.tmp"))


def test_the_learning_rate_rises_and_falls() -> None:
    settings = OptimiserSettings(warmup_steps=4, final=0.1)
    assert factor_at(settings, 0, 0.0) == 0.25
    assert factor_at(settings, 50, 0.5) == pytest.approx(0.55)
    assert factor_at(settings, 100, 1.0) == pytest.approx(0.1)


def test_muon_makes_matrices_orthogonal() -> None:
    for shape in ((8, 20), (20, 8), (8, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_muon_goes_on_bit_for_bit_too(tmp_path: Path) -> None:
    optimiser = OptimiserSettings(learning_rate=1e-2, muon=1e-2, warmup_steps=2, schedule="constant")
    _train(tmp_path / "whole", task=ToyTask(optimiser=optimiser))
    for steps in (4, 8):
        _train(tmp_path / "halves", task=ToyTask(optimiser=optimiser), steps=steps)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "halves"))
    _train(tmp_path / "adam")
    assert not _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "adam"))


def test_the_average_is_that_of_the_formula() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = Average(module, 0.5)
    torch.nn.init.ones_(module.weight)
    average.update()  # the first step keeps (1 + 1) / (10 + 1)
    assert average.weights["weight"].item() == pytest.approx(1 - 2 / 11)
    with average.applied():
        assert module.weight.item() == pytest.approx(1 - 2 / 11)
    assert module.weight.item() == 1.0
