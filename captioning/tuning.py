"""A model while it is finetuned: what is trainable, a step, a judgement, checkpoints, and the model to keep."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from captioning.chat import IGNORED, generate, load
from captioning.examples import Encoder, Example
from captioning.requests import Reply, Request
from curation.devices import find_device
from curation.errors import UsageError
from curation.files import flush

_CHECKPOINT = "checkpoint-"
_LEARNING_RATES = {"lora": 1e-4, "full": 1e-5}
_BETAS = (0.9, 0.98)
_MUON_RATE = 5.0  # of its matrices, to the learning rate of everything else
_NOT_FOR_MUON = ("embed", "lm_head")  # rows of these are learnt each by itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to finetune.

    Attributes:
        method: ``lora`` learns small additions to all linear layers; ``full`` all weights, which takes the memory of
            four copies.
        learning_rate: at its highest; by default 1e-4 for lora and 1e-5 for full. A tiny model with random weights
            wants 1e-3.
        optimiser: ``adamw``, or ``muon`` for the matrices of a full training from random weights, adamw for the rest
            (Jordan et al. 2024, "Muon"). On the generated world it learnt directions and shapes several times sooner
            than adamw. Not for models that were trained with another.
        batch, accumulate: clips that are computed together, and such batches per step.
        epochs: how often each clip is learnt from.
        minutes: train for so long, whatever the epochs. Not exactly repeatable.
        warmup_steps: until the learning rate is at its highest; at most a tenth of so many epochs.
        decay: the last share of the training, in which the learning rate falls to nothing.
        clip_norm: gradients are scaled down to this length.
        held_out: share of the videos that are not learnt from; ``judged`` of their clips are looked at, ``samples`` of
            them captioned, every ``evaluate_every`` steps; null: ten times in so many epochs, or every 100 steps.
        patience: evaluations without a better one until training stops; null: never.
        rank, alpha, dropout: of lora.
        save_memory: compute activations again instead of keeping them; takes a third longer.
        cache_mb: memory for prepared examples.
    """

    method: Literal["lora", "full"] = "lora"
    learning_rate: float | None = None
    optimiser: Literal["adamw", "muon"] = "adamw"
    batch: int = 4
    accumulate: int = 4
    epochs: float = 3.0
    minutes: float | None = None
    warmup_steps: int = 50
    decay: float = 0.4
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    held_out: float = 0.1
    judged: int = 256
    samples: int = 4
    evaluate_every: int | None = None
    patience: int | None = 5
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    save_memory: bool = False
    cache_mb: int = 1024
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        if self.method not in _LEARNING_RATES:
            raise UsageError(f"method {self.method!r}: lora or full is meant")
        if self.optimiser not in ("adamw", "muon"):
            raise UsageError(f"optimiser {self.optimiser!r}: adamw or muon is meant")
        if self.optimiser == "muon" and self.method != "full":
            raise UsageError("optimiser muon is for method full: what lora adds to a weight is no matrix by itself")
        # Comparisons are such that nan, which answers no to all, is refused too.
        for name in ("batch", "accumulate", "epochs", "clip_norm", "judged", "rank", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name):g}: a number above 0 is meant")
        for name in ("learning_rate", "minutes", "patience", "evaluate_every"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} {value:g}: a number above 0 is meant")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout:g}: a share from 0 to below 1 is meant")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out {self.held_out:g}: a share between 0 and 1 is meant")


def steps_of(settings: Settings, num_clips: int) -> int | None:
    """How many steps it takes to learn from so many clips; None where minutes decide."""
    if settings.minutes:
        return None
    return max(1, round(settings.epochs * num_clips / (settings.batch * settings.accumulate)))


def rate_at(settings: Settings, step: int, share: float, total: int | None = None) -> float:
    """The learning rate of a step. ``share``: of the training that is over; ``total``: its steps, where known."""
    highest = settings.learning_rate or _LEARNING_RATES[settings.method]
    warmup = settings.warmup_steps if total is None else min(settings.warmup_steps, total // 10)
    warm = min(1.0, (step + 1) / max(1, warmup))
    left = (1 - share) / settings.decay if settings.decay else 1.0
    return highest * warm * max(0.02, min(1.0, left))


@dataclasses.dataclass
class State:
    """How far a training is."""

    step: int = 0
    seconds: float = 0.0
    stopped: str = ""
    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def best(self) -> int:
        """The step with the least loss on clips held out."""
        return int(min(self.losses, key=lambda entry: entry["held_out_loss"])["step"]) if self.losses else 0


class Tuned:
    """A model with an optimiser over its trainable weights."""

    def __init__(self, model: Any, processor: Any, settings: Settings) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self._trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._optimisers = _optimisers(self._trainable, settings)

    def describe(self) -> str:
        trainable, whole = (
            sum(weight.numel() for weight in weights) for weights in (self._trainable.values(), self.model.parameters())
        )
        return f"{self.settings.method} learns {trainable / 1e6:.1f} M of {whole / 1e6:.1f} M weights on {self.device}"

    @property
    def device(self) -> Any:
        return self.model.device

    def learn(self, encoder: Encoder, examples: Sequence[Example], *, rate: float) -> float:
        """One step. Every token counts the same, however the examples fall into batches. Returns the mean loss."""
        import torch

        self.model.train()
        for optimiser, times in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * times
        batches = [encoder.batch(part) for part in _parts(examples, self.settings.batch)]
        counts = [_learnt(batch) for batch in batches]
        total = 0.0
        for batch, count in zip(batches, counts, strict=True):
            loss = self._loss(batch) * (count / sum(counts))
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self._trainable.values(), self.settings.clip_norm)
        for optimiser, _ in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return total

    def judge(self, encoder: Encoder, examples: Sequence[Example]) -> float:
        """The mean loss per token."""
        import torch

        self.model.eval()
        total, tokens = 0.0, 0
        with torch.inference_mode():
            for part in _parts(examples, self.settings.batch):
                batch = encoder.batch(part)
                count = _learnt(batch)
                total, tokens = total + self._loss(batch).item() * count, tokens + count
        return total / tokens

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Captions by the model as it is."""
        self.model.eval()
        with self._mixed():
            return generate(self.model, self.processor, requests)

    def is_stuck(self, state: State) -> bool:
        """Whether the last ``patience`` evaluations brought nothing better."""
        patience = self.settings.patience
        since = [entry for entry in state.losses if entry["step"] > state.best]
        return patience is not None and len(since) >= patience

    def _loss(self, batch: dict[str, Any]) -> Any:
        batch = {name: value.to(self.device) for name, value in batch.items()}
        with self._mixed():
            return self.model(**batch).loss

    def _mixed(self) -> contextlib.AbstractContextManager[Any]:
        """On a GPU, products are computed in bfloat16 and weights that learn are kept in float32."""
        import torch

        if self.device.type == "cpu":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def checkpoint(self, folder: Path, state: State) -> None:
        """Write weights, optimiser and progress aside, rename them into place, and remove the checkpoint before."""
        import torch
        from safetensors.torch import save_file

        aside, before = folder / "checkpoint.tmp", _newest(folder)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file({name: weight.detach().contiguous() for name, weight in self._trainable.items()}, aside / "weights")
        inner = [optimiser.state_dict() for optimiser, _ in self._optimisers]
        torch.save({"optimisers": inner, "random": torch.get_rng_state()}, aside / "optimisers")
        best = aside / "weights" if state.best == state.step or before is None else before / "best"
        os.link(best, aside / "best")
        (aside / "state.json").write_text(json.dumps(dataclasses.asdict(state)), encoding="utf-8")
        for path in aside.iterdir():
            flush(path)
        place = folder / f"{_CHECKPOINT}{state.step:08d}"
        shutil.rmtree(place, ignore_errors=True)
        os.replace(aside, place)
        if before is not None and before != place:
            shutil.rmtree(before)

    def restore(self, folder: Path) -> State:
        """Continue from the newest checkpoint; from the start where there is none."""
        import torch

        newest = _newest(folder)
        if newest is None:
            torch.manual_seed(self.settings.seed)
            return State()
        self._read(newest / "weights")
        saved = torch.load(newest / "optimisers", weights_only=True, map_location="cpu")
        for (optimiser, _), state in zip(self._optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        torch.set_rng_state(saved["random"])
        return State(**json.loads((newest / "state.json").read_text(encoding="utf-8")))

    def take_best(self, folder: Path, state: State) -> int:
        """Bring the model to the step with the least loss on clips held out, and name it."""
        newest = _newest(folder)
        if newest is not None:
            self._read(newest / "best")
        return state.best

    def _read(self, path: Path) -> None:
        import torch
        from safetensors.torch import load_file

        stored = load_file(path)
        with torch.no_grad():
            for name, weight in self._trainable.items():
                weight.copy_(stored[name])

    def save(self, folder: Path) -> None:
        """Write the model, lora merged into it, and its processor; the lora also by itself, in ``adapter``."""
        model = self.model
        if self.settings.method == "lora":
            model.save_pretrained(folder / "adapter")
            model = model.merge_and_unload()
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def prepare(base: str, settings: Settings, *, device: str | None) -> Tuned:
    """Open the base and make trainable what the method learns.

    Raises:
        UsageError: the base cannot be opened, or has nothing that lora could be added to.
    """
    import torch

    device = str(find_device(device))
    half = device != "cpu" and settings.method == "lora"  # weights that learn need the precision of float32
    model, processor = load(base, device=device, dtype="bfloat16" if half else "float32")
    if settings.save_memory:
        # transformers 5 has another name for it, and warns of the one that it had before.
        named = "activation_checkpointing_enable"
        getattr(model, named if hasattr(model, named) else "gradient_checkpointing_enable")()
        model.enable_input_require_grads()
    if settings.method == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(settings.seed)  # the additions begin at random
        additions = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules="all-linear"
        )
        model = get_peft_model(model, additions)
    return Tuned(model, processor, settings)


def _optimisers(weights: dict[str, Any], settings: Settings) -> list[tuple[Any, float]]:
    """What changes the weights, and how many times the learning rate each takes."""
    from torch.optim import AdamW

    rest, found = weights, list[tuple[Any, float]]()
    if settings.optimiser == "muon":
        from training.muon import Muon

        matrices = {
            name: weight
            for name, weight in weights.items()
            if weight.dim() == 2 and not any(part in name for part in _NOT_FOR_MUON)
        }
        rest = {name: weight for name, weight in weights.items() if name not in matrices}
        found.append((Muon(list(matrices.values()), lr=0.0, weight_decay=settings.weight_decay), _MUON_RATE))
    found.append((AdamW(rest.values(), lr=0.0, betas=_BETAS, weight_decay=settings.weight_decay), 1.0))
    return found


def _newest(folder: Path) -> Path | None:
    return max(folder.glob(f"{_CHECKPOINT}*"), default=None)


def _parts(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def _learnt(batch: dict[str, Any]) -> int:
    """Tokens that count. The first is predicted from nothing and does not."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
