"""The training loop, for every kind of model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from curation.errors import CutroomError, UsageError
from curation.files import aside
from curation.output import locked
from training.checkpoint import Checkpoints, on_first
from training.distributed import World
from training.folders import PROGRESS, WEIGHTS, progress_of, role_file
from training.metrics import HELD_OUT, Metrics, Stopwatch, peak_flops, peak_memory_gb
from training.muon import Muon
from training.optimiser import Average, factor_at, optimisers
from training.settings import Training
from training.task import Batches, Task

Say = Callable[[str], None]
# Frozen weights are not stored, and not missed in what is loaded.
_LEARNT = StateDictOptions(ignore_frozen_params=True, strict=False)


class TrainingError(CutroomError, RuntimeError):
    """Training cannot go on: its numbers are no longer finite, or the data are bad."""


@dataclass
class State:
    """How far a training is."""

    step: int = 0
    seconds: float = 0.0  # of steps, without judging and checkpoints
    skipped: int = 0  # steps in a row that changed nothing


class Trainer:
    """Trains the roles of a task on batches, from the newest checkpoint in ``folder`` if there is one.

    In the folder: ``metrics.jsonl``, ``tensorboard/``, ``samples/``, ``checkpoints/`` and ``weights/``, which is the
    model as others open it, with averaged weights where an average is kept. Roles beside the model have a file each.

    ``begun_from`` names the weights that a training begins with. It does not go on from others. Frozen weights are not
    stored: they are as they began.
    ``note`` is called by the first rank once there are weights, and not by a training that is refused.
    """

    def __init__(
        self,
        task: Task,
        batches: Batches,
        training: Training,
        *,
        folder: Path,
        world: World,
        say: Say = print,
        begun_from: str | None = None,
        note: Callable[[], None] = lambda: None,
    ) -> None:
        training.check()
        self._begun_from, self._note = begun_from, note
        self._task, self._batches, self._training = task, batches, training
        self._folder, self._world, self._say = folder, world, say
        self._optimisers: dict[str, list[torch.optim.Optimizer]] = {}
        for name, role in task.roles.items():
            role.module.to(world.device)
            spread, offload = world.size > 1 and role.sharded, training.offload_optimiser
            if spread:
                policy = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if offload else OffloadPolicy()
                for block in (*task.shard(role.module), role.module):
                    # Over all ranks, also those that share samples; and at once spread again after a forward without
                    # a backward, as in judging, for averages lie spread.
                    fully_shard(block, reshard_after_forward=True, offload_policy=policy)
            if training.compile:
                role.module.compile()
            self._optimisers[name] = optimisers(role.module, role.optimiser, offload=offload and not spread)
            if name not in task.active(0):
                _prepare(role.module, self._optimisers[name])
        self._averages = {
            name: Average(role.module, training.ema)
            for name, role in task.roles.items()
            if role.averaged and training.ema is not None
        }
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints, world=world)
        self.state = State()

    def train(self) -> dict[str, float]:
        """Train to the end. Returns the last figures on data held out.

        Raises:
            UsageError: the folder holds a training of another model.
            TrainingError: gradients were not finite for too many steps in a row.
        """
        if self._training.precision == "bf16" and self._world.device.type == "cpu" and self._world.is_first:
            self._say("bf16 takes most CPUs up to ten times as long as fp32: --set training.precision=fp32")
        with locked(self._folder) if self._world.is_first else contextlib.nullcontext():
            return self._train()

    def _train(self) -> dict[str, float]:
        self._check_alike()
        self._restore()
        judged = stored = self.state.step
        judgement: dict[str, float] = {}
        metrics = self._metrics()
        with contextlib.closing(metrics) if metrics else contextlib.nullcontext():
            batches = iter(self._batches)
            if not self.state.step:
                self._judge(metrics)  # what there is to be gained
            while (share := self._share()) < 1:
                figures = self._step(batches, share)
                if self.state.step % self._training.log_every == 0 and metrics:
                    metrics.log(self.state.step, figures)
                if self.state.step % self._training.judge_every == 0:
                    judgement, judged = self._judge(metrics), self.state.step
                if self.state.step % self._training.checkpoint_every == 0:
                    self._store()
                    stored = self.state.step
            if judged != self.state.step or not judgement:
                again = metrics is not None and metrics.judged and judged == self.state.step
                judgement = self._judge(None if again else metrics)  # a finished training has its row
            if stored != self.state.step:
                self._store()
            elif not self._world.of_first(self._is_written()):  # killed between a checkpoint and its weights
                self._write()
        return judgement

    def _check_alike(self) -> None:
        """A rank that sees other samples than the first would skip some and repeat others."""
        state = self._batches.state_dict()
        if self._world.of_first(state) != state:
            raise TrainingError(
                f"rank {self._world.rank} has found other samples than the first one: "
                "see to it that every machine reads the same shards, and start again"
            )
        if self._world.of_first(self._begun_from) != self._begun_from:
            raise TrainingError(
                f"rank {self._world.rank} begins with other weights than the first one: "
                "see to it that every machine reads the same model, and start again"
            )

    def _share(self) -> float:
        """How much of the training is over."""
        steps, minutes = self._training.steps, self._training.minutes
        by_steps = self.state.step / steps if steps else 0.0
        by_time = float(self._world.of_first(self.state.seconds)) / (minutes * 60) if minutes else 0.0
        return max(by_steps, by_time)

    def _step(self, batches: Iterator[Any], share: float) -> dict[str, float | None]:
        """One step of every active role. Every sample counts the same, however they fall into batches and ranks."""
        task, step, watch = self._task, self.state.step, Stopwatch()
        taken = [next(batches) for _ in range(self._training.accumulate)]
        waited = watch.lap()
        self._check_shared(taken)
        counts = (sum(count(batch) for batch in taken) for count in (task.count, task.frames))
        total, frames = self._world.total(*counts)
        sums: dict[str, Tensor] = {}
        figures: dict[str, float | None] = {}
        for name in task.active(step):
            role = task.roles[name]
            role.module.train()
            for index, batch in enumerate(taken):
                weight = task.count(batch) / total
                with self._autocast():
                    loss = task.loss(name, batch, index=index, step=step, rng=self._rng(batch))
                # Gradients are averaged over ranks, so that each rank's share has to be that much larger.
                torch.autograd.backward(loss.value * weight * self._world.size)
                for figure, value in loss.figures.items():
                    sums[figure] = sums.get(figure, 0.0) + value.detach().double() * weight
            figures[f"{name}_gradient"] = self._update(name, factor_at(role.optimiser, step, share))
            if name in self._averages:
                self._averages[name].update()
        self._check_skipped(figures)
        totals = self._world.total(*(float(value) for value in sums.values()), everywhere=True)
        (bad,) = self._world.total(self._batches.num_bad)
        seconds = waited + watch.lap()
        self.state.step += 1
        self.state.seconds += seconds
        peak, flops = peak_flops(self._world.device), sum(task.flops(batch) for batch in taken)
        first = next(iter(task.roles.values()))
        return {
            **dict(zip(sums, totals, strict=True)),
            **figures,
            "learning_rate": first.optimiser.learning_rate * factor_at(first.optimiser, step, share),
            "samples_per_s": total / seconds,
            "frames_per_s": frames / seconds if frames else None,
            "step_s": seconds,
            "data_wait": waited / seconds,
            "bad_samples": bad,
            "peak_memory_gb": peak_memory_gb(self._world.device),
            "tflop_per_s": flops / seconds / 1e12,
            "mfu": flops / seconds / peak if peak else None,
        }

    def _update(self, name: str, factor: float) -> float:
        """Change a role's weights by their gradients, at a learning rate of ``factor`` highest ones.

        Returns the length of the gradient before it was clipped.
        """
        role, settings = self._task.roles[name], self._task.roles[name].optimiser
        if not role.sharded:
            self._world.average_gradients(role.module)
        limit = settings.clip_norm
        norm = nn.utils.clip_grad_norm_(role.module.parameters(), math.inf if limit is None else limit)
        length = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        for optimiser in self._optimisers[name]:
            highest = settings.muon if isinstance(optimiser, Muon) else settings.learning_rate
            for group in optimiser.param_groups:
                group["lr"] = (highest or 0.0) * factor
            if math.isfinite(length):
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return length

    def _check_shared(self, batches: Sequence[Any]) -> None:
        """A sample that one rank alone could not read would let those that share it wait for each other for ever."""
        names = json.dumps([list(batch.keys) for batch in batches])
        if not self._world.share(names):
            raise TrainingError(
                f"ranks that share samples have read others in step {self.state.step}, rank {self._world.rank} "
                f"{names}: see what was bad on one of them; the same command goes on from the newest checkpoint"
            )

    def _check_skipped(self, figures: dict[str, float | None]) -> None:
        finite = all(value is None or math.isfinite(value) for value in figures.values())
        self.state.skipped = 0 if finite else self.state.skipped + 1
        if self.state.skipped > self._training.max_skipped:
            raise TrainingError(
                f"gradients were not finite in {self.state.skipped} steps in a row, up to step {self.state.step}: "
                f"lower the learning rate, or continue from an earlier checkpoint in {self._checkpoints.folder}"
            )

    def _rng(self, batch: Any) -> torch.Generator:
        """Decided by the seed, the step and the samples, so that neither resuming nor the ranks change it."""
        named = json.dumps([self._training.seed, self.state.step, list(batch.keys)]).encode()
        seed = int.from_bytes(hashlib.blake2b(named, digest_size=7).digest(), "big")
        torch.manual_seed(seed)  # for what takes no generator, such as dropout
        return torch.Generator(device=self._world.device).manual_seed(seed)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._training.precision == "fp32":
            return contextlib.nullcontext()
        # The copies that autocast would keep are of all weights that FSDP2 gathers, one block at a time.
        is_spread = self._world.size > 1 and any(role.sharded for role in self._task.roles.values())
        return torch.autocast(self._world.device.type, torch.bfloat16, cache_enabled=not is_spread)

    def _judge(self, metrics: Metrics | None) -> dict[str, float]:
        name = next(iter(self._task.roles))
        average = self._averages.get(name)
        self._task.roles[name].module.eval()
        with average.applied() if average else contextlib.nullcontext(), torch.no_grad(), self._autocast():
            figures = self._task.judge(self.state.step, self._folder / "samples")
        if metrics:
            named: dict[str, float | None] = {f"{HELD_OUT}{figure}": value for figure, value in figures.items()}
            metrics.log(self.state.step, {"seconds": self.state.seconds, **named})
        return figures

    def _parts(self) -> dict[str, Any]:
        """Everything that is stored, as DCP takes it."""
        parts: dict[str, Any] = {}
        for name, role in self._task.roles.items():
            model, optimiser = get_state_dict(role.module, self._optimisers[name], options=_LEARNT)
            parts[name] = {"model": model, "optimiser": optimiser}
            if name in self._averages:
                parts[name]["average"] = self._averages[name].weights
        return parts

    def _store(self) -> None:
        """A checkpoint, and the model as others open it."""
        about = {
            "step": self.state.step,
            "seconds": self.state.seconds,
            "batches": self._batches.state_dict(),
            "updates": {name: average.num_updates for name, average in self._averages.items()},
            "config": self._task.config,
            "begun_from": self._begun_from,
        }
        self._checkpoints.save(self.state.step, self._parts(), about)
        self._write()

    def _write(self) -> None:
        """The model as others open it, the other roles beside it, and behind them the step that they are of."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        (model, role), *others = self._task.roles.items()
        beside: dict[str, dict[str, Any]] = {
            name: get_model_state_dict(other.module, options=options) for name, other in others
        }
        average = self._averages.get(model)
        with average.applied() if average else contextlib.nullcontext():
            weights: dict[str, Any] = get_model_state_dict(role.module, options=options)

            def save() -> None:
                self._task.save(self._folder / WEIGHTS, weights)
                for name, state in beside.items():
                    with aside(role_file(self._folder, name)) as file:
                        save_file({key: value.contiguous() for key, value in state.items()}, file)
                with aside(self._folder / PROGRESS) as file:
                    file.write_text(str(self.state.step), encoding="utf-8")
                self._note()

            on_first(self._world, save)  # inside, because on a CPU the weights are no copies

    def _is_written(self) -> bool:
        return progress_of(self._folder / WEIGHTS) == str(self.state.step)

    def _restore(self) -> None:
        """Go on from the newest checkpoint."""
        about = self._checkpoints.about()
        if about is None:
            return
        if about["config"] != json.loads(json.dumps(self._task.config)):
            raise UsageError(
                f"{self._folder} holds a training of another model: choose another --output, or remove the folder"
            )
        if about["begun_from"] != self._begun_from:
            raise UsageError(
                f"{self._folder} began with other weights than it is given now: remove it to train anew, or take back "
                "what was changed (the model that it starts from, or the stage before, which learnt on since)"
            )
        parts = self._parts()
        self._checkpoints.load(parts)
        for name, role in self._task.roles.items():
            state, optimisers = parts[name], self._optimisers[name]
            asked = [_settings(optimiser) for optimiser in optimisers]
            set_state_dict(
                role.module,
                optimisers,
                model_state_dict=state["model"],
                optim_state_dict=state["optimiser"],
                options=_LEARNT,
            )
            for optimiser, groups in zip(optimisers, asked, strict=True):  # as the file has them now
                for group, settings in zip(optimiser.param_groups, groups, strict=True):
                    group.update(settings)
        for name, average in self._averages.items():
            average.num_updates = about["updates"][name]
        self._batches.load_state_dict(about["batches"])
        self.state = State(step=about["step"], seconds=about["seconds"])
        if self._world.is_first:
            self._note()
            self._say(f"continuing after step {self.state.step}")

    def _metrics(self) -> Metrics | None:
        if not self._world.is_first:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        return Metrics(self._folder, step=self.state.step, say=self._say, wandb=self._training.wandb)


def _settings(optimiser: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What each group of weights is told, without the weights."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimiser.param_groups]


def _prepare(module: nn.Module, optimisers: list[torch.optim.Optimizer]) -> None:
    """Give the optimisers of a role that begins to learn later the state that they begin with.

    A checkpoint before that would give them the state after a step of no length, and so change what the role learns.
    """
    get_optimizer_state_dict(module, optimisers)
    for optimiser in optimisers:
        for state in optimiser.state.values():
            if "step" in state:
                state["step"].zero_()
