"""The loop: every sample counts once, and a training that was stopped ends as if it had not been."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from curation.errors import UsageError
from curation.output import locked
from tests.training.toy import ToyBatch, ToyBatches, ToyTask
from training import checkpoint, offload
from training.checkpoint import CheckpointError
from training.distributed import World
from training.loop import Trainer, TrainingError
from training.muon import Muon, orthogonal
from training.optimiser import Average, factor_at, optimisers
from training.settings import OptimiserSettings, Training
from training.task import Loss, Role


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


class _LateTask(ToyTask):
    """With a second role that learns from step 6 on."""

    def __init__(self) -> None:
        super().__init__(dropout=0)
        self.late = nn.Linear(6, 1)
        self.roles["late"] = Role(self.late, self.roles["model"].optimiser, averaged=False)

    def active(self, step: int) -> Sequence[str]:
        return ("model", "late") if step >= 6 else ("model",)

    def loss(self, role: str, batch: ToyBatch, *, index: int, step: int, rng: torch.Generator) -> Loss:
        if role == "model":
            return super().loss(role, batch, index=index, step=step, rng=rng)
        value = (self.late(batch.x)[:, 0] - batch.x.sum(dim=1)).square().mean()
        return Loss(value, {"late": value})


def test_checkpoints_before_a_role_begins_do_not_change_what_it_learns(tmp_path: Path) -> None:
    seldom, often = _LateTask(), _LateTask()
    _train(tmp_path / "seldom", task=seldom, checkpoint_every=100)
    before = seldom.late.weight.detach().clone()
    _train(tmp_path / "often", task=often, checkpoint_every=1)
    assert torch.equal(before, often.late.weight)
    assert not torch.equal(before, _LateTask().late.weight)


def test_a_finished_training_is_judged_once(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        training = Training(steps=6, precision="fp32", judge_every=4, checkpoint_every=100)
        trainer = Trainer(
            ToyTask(), ToyBatches(), training, folder=tmp_path, world=World(), say=lambda text: said.append(text)
        )
        figures = trainer.train()
    judged = [row for row in _figures(tmp_path) if "held_out_error" in row]
    assert [row["step"] for row in judged] == [0, 4, 6]
    assert figures["error"] == judged[-1]["held_out_error"]
    assert said[-1] == "continuing after step 6"


def test_settings_of_an_optimiser_are_those_of_the_file_after_a_resume(tmp_path: Path) -> None:
    like = {"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"}
    _train(tmp_path, steps=4, task=ToyTask(optimiser=OptimiserSettings(**like)))  # type: ignore[arg-type]
    other = OptimiserSettings(**like, weight_decay=0.5, betas=(0.5, 0.6), eps=1e-3)  # type: ignore[arg-type]
    trainer = _train(tmp_path, steps=5, task=ToyTask(optimiser=other))
    (adam,) = trainer._optimisers["model"]
    assert [(group["betas"], group["eps"]) for group in adam.param_groups] == [((0.5, 0.6), 1e-3)] * 2
    assert [group["weight_decay"] for group in adam.param_groups] == [0.5, 0.0]
    assert adam.state[next(iter(trainer._task.roles["model"].module.parameters()))]["step"] == 5


def test_two_trainings_never_write_to_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another run is writing"):
        _train(tmp_path)
    assert _train(tmp_path).state.step == 8


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _train(tmp_path, steps=4)

    def save(state: object, checkpoint_id: Path) -> None:
        (checkpoint_id / "torn").write_bytes(b"half")
        raise RuntimeError("unexpected pos 704 vs 598")  # as PyTorch says it

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="is the disk full"):
        patch.setattr(checkpoint, "save", save)
        _train(tmp_path, steps=8)
    assert _train(tmp_path, steps=8).state.step == 8


def test_bad_samples_are_told_at_each_step(tmp_path: Path) -> None:
    _train(tmp_path, batches=ToyBatches(num_bad=3), steps=2)
    assert [row["bad_samples"] for row in _figures(tmp_path) if "loss" in row] == [3, 3]


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


@pytest.mark.slow
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


@pytest.mark.parametrize("torn", [False, True])
def test_killed_between_a_checkpoint_and_its_weights_writes_them_the_next_time(torn: bool, tmp_path: Path) -> None:
    _train(tmp_path / "whole")

    class Dies(ToyTask):
        def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
            (folder / "model.safetensors").unlink(missing_ok=True)
            if torn:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    _train(tmp_path / "killed", steps=4)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed", task=Dies())
    _train(tmp_path / "killed")
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "killed"))
    before = (tmp_path / "killed" / "weights" / "model.safetensors").stat().st_mtime_ns
    _train(tmp_path / "killed")  # finished: nothing is written again
    assert (tmp_path / "killed" / "weights" / "model.safetensors").stat().st_mtime_ns == before


def test_bf16_on_a_cpu_is_said_to_be_slow(tmp_path: Path) -> None:
    for precision, said in (("bf16", 1), ("fp32", 0)):
        lines: list[str] = []
        training = Training(steps=1, precision=precision)  # type: ignore[arg-type]
        folder = tmp_path / precision
        Trainer(ToyTask(), ToyBatches(), training, folder=folder, world=World(), say=lines.append).train()
        assert sum("training.precision=fp32" in line for line in lines) == said


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
        several = torch.stack([matrix, -3 * matrix, matrix + 1])
        alone = torch.stack([orthogonal(one) for one in several])
        assert torch.allclose(orthogonal(several), alone, atol=1e-5)


def test_muon_changes_each_weight_as_if_it_were_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (6, 2, 2), (6, 4), (3, 5), (6, 4)]  # the first three are matrices of one shape
    start, slopes = ([torch.randn(shape, generator=rng) for shape in shapes] for _ in range(2))

    def stepped(*chosen: int) -> list[Tensor]:
        weights = [torch.nn.Parameter(start[i].clone()) for i in chosen]
        muon = Muon(weights, lr=0.1, weight_decay=0.01)
        for _ in range(3):
            for weight, i in zip(weights, chosen, strict=True):
                weight.grad = slopes[i].clone()
            muon.step()
        return [weight.detach() for weight in weights]

    for i, together in enumerate(stepped(*range(5))):
        assert torch.allclose(together, stepped(i)[0], atol=1e-5)
        assert not torch.allclose(together, start[i], atol=1e-2)


def test_muon_goes_on_bit_for_bit_too(tmp_path: Path) -> None:
    optimiser = OptimiserSettings(learning_rate=1e-2, muon=1e-2, warmup_steps=2, schedule="constant")
    _train(tmp_path / "whole", task=ToyTask(optimiser=optimiser))
    for steps in (4, 8):
        _train(tmp_path / "halves", task=ToyTask(optimiser=optimiser), steps=steps)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "halves"))
    _train(tmp_path / "adam")
    assert not _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "adam"))


@pytest.mark.parametrize("muon", [None, 1e-2], ids=["adamw", "muon"])
def test_offloaded_optimisers_learn_and_go_on_bit_for_bit(
    muon: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "_AT_ONCE", 20)  # so that weights are changed in several portions
    optimiser = OptimiserSettings(learning_rate=1e-2, muon=muon, warmup_steps=2, schedule="constant")
    _train(tmp_path / "without", task=ToyTask(optimiser=optimiser))
    _train(tmp_path / "with", task=ToyTask(optimiser=optimiser), offload_optimiser=True)
    assert _equal(_weights(tmp_path / "without"), _weights(tmp_path / "with"))
    for first, second in ((True, True), (True, False), (False, True)):  # it can be changed on the way, too
        folder = tmp_path / f"{first}-{second}"
        _train(folder, task=ToyTask(optimiser=optimiser), steps=4, offload_optimiser=first)
        _train(folder, task=ToyTask(optimiser=optimiser), steps=8, offload_optimiser=second)
        assert _equal(_weights(tmp_path / "without"), _weights(folder))


def test_muon_alone_learns_a_model_of_matrices() -> None:
    """As the additions of LoRA are."""
    module = torch.nn.Linear(6, 8, bias=False)
    (muon,) = optimisers(module, OptimiserSettings(muon=1e-2), offload=False)
    assert muon.param_groups[0]["params"] == [module.weight]


def test_offloaded_state_is_where_the_weights_are_during_a_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device ``meta``, which stands for a GPU: nothing is computed there, but everything lies somewhere."""
    monkeypatch.setattr(offload, "_home", lambda value: torch.zeros_like(value, device="cpu"))
    monkeypatch.setattr(offload, "_AT_ONCE", 20)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 1)).to("meta")
    (adam,) = optimisers(module, OptimiserSettings(), offload=True)
    seen: list[set[str]] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: None = None) -> None:
        states = [self.state[weight] for group in self.param_groups for weight in group["params"]]
        seen.append({state[name].device.type for state in states for name in ("exp_avg", "exp_avg_sq") if state})
        others = [state for weight, state in self.state.items() if all(state is not one for one in states)]
        assert all(state["exp_avg"].device.type == "cpu" for state in others)
        for state in states:
            for name in ("exp_avg", "exp_avg_sq"):
                state.setdefault(name, torch.zeros(3, device="meta"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        adam.step()
        adam.step()
    assert torch.optim.AdamW.step is original
    portions = len(seen) // 2
    assert portions > 2
    assert seen[portions:] == [{"meta"}] * portions
    assert {state["exp_avg"].device.type for state in adam.state.values()} == {"cpu"}
    assert sorted(len(group["params"]) for group in adam.param_groups) == [2, 2]


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
