"""``cutroom train transformer``: from a YAML file to a trained transformer, stage by stage."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from curation.errors import UsageError
from training.data.held_out import open_parts
from training.data.preflight import preflight
from training.data.settings import DataSettings
from training.distributed import World, find_world, joined
from training.folders import WEIGHTS, check_folder, note_stages, progress_of
from training.loop import Trainer
from training.metrics import check_wandb
from training.settings import STRICT, OptimiserSettings, Training, TrainingStage, load_stages
from training.transformer.attention import attention, check_learns
from training.transformer.batches import LatentBatches, Loaded
from training.transformer.contents import check_tags
from training.transformer.diffusion import Diffusion
from training.transformer.encode import digest_of
from training.transformer.lora import add_lora
from training.transformer.model import Transformer, checkpoint_blocks
from training.transformer.prepare import Ready, get_ready
from training.transformer.settings import (
    ConditionSettings,
    JudgeSettings,
    ModelSettings,
    PackingSettings,
    TextSettings,
    VAESettings,
)
from training.transformer.task import TransformerTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """The whole YAML file of a transformer's training (one stage of it, where it has ``stages``).

    Attributes:
        packing: null computes batches of one bucket at a time, as large as the buckets say.
        diffusion: null takes that of ``model.start``; with ``model.size`` that of 2b (``snr_shift_scale`` 3).
        cache: folder of latents and embeddings; null: ``cache`` in the output, shared by all stages.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    data: DataSettings
    training: Training
    model: ModelSettings
    vae: VAESettings = dataclasses.field(default_factory=VAESettings)
    text: TextSettings = dataclasses.field(default_factory=TextSettings)
    packing: PackingSettings | None = None
    diffusion: Diffusion | None = None
    conditions: ConditionSettings = dataclasses.field(default_factory=ConditionSettings)
    judge: JudgeSettings = dataclasses.field(default_factory=JudgeSettings)
    optimiser: OptimiserSettings = dataclasses.field(default_factory=OptimiserSettings)
    cache: str | None = None

    def check(self) -> None:
        """What can be known before work starts.

        Raises:
            UsageError: with the value that makes no sense.
        """
        for check in (self.data.check, self.training.check, self.text.check, self.conditions.check, self.judge.check):
            check()
        if self.packing is not None:
            self.packing.check()
        check_wandb(self.training.wandb)
        if not self.data.shuffle:
            raise UsageError("data.shuffle false: the transformer's samples are always shuffled; leave it out")
        for bucket in self.data.buckets:
            if bucket.frames % 4 != 1 or bucket.height % 16 or bucket.width % 16:
                raise UsageError(
                    f"data.buckets: {bucket} does not fit: 4k+1 frames (such as 49) of sides divisible by 16 are meant"
                )
        if self.packing is not None and self.packing.attention == "varlen" and self.training.precision == "fp32":
            raise UsageError("packing.attention varlen computes in bf16 only; choose split or flex, or precision bf16")


def load(file: Path, *, changes: Sequence[str] = ()) -> list[TrainingStage[TransformerTraining]]:
    """Read and check a transformer's training.

    Raises:
        UsageError: a mistake, with its place in the file where it stands there.
    """
    stages = load_stages(file, TransformerTraining, changes=changes)
    for stage in stages:
        stage.config.check()
    first = stages[0].config.model
    if len(stages) > 1 and any(stage.config.model.lora for stage in stages):
        raise UsageError(
            f"{file}: model.lora with stages: the additions of a stage would be to those of the one before, and not "
            "to the published weights; give each stage a file of its own"
        )
    if (first.size is None) == (first.start is None):
        raise UsageError(f"{file}: model: either `size` (such as debug or 2b) or `start` (weights) is meant")
    for stage in stages[1:]:
        own = {"model": stage.config.model == first, "vae.start": stage.config.vae.start == stages[0].config.vae.start}
        if others := [setting for setting, same in own.items() if not same]:
            raise UsageError(
                f"{file}: stage {stage.name} has another {others[0]} than the first one: a stage goes on with the "
                "transformer and the VAE of the one before; leave it out, or give the stage a file of its own"
            )
    return stages


def train_transformer(
    file: Path,
    output: Path,
    *,
    changes: Sequence[str] = (),
    say: Callable[[str], None] = print,
    encode_only: bool = False,
) -> dict[str, float]:
    """Train a transformer, or go on where an earlier call with the same folder was stopped.

    Where processes were started to train together (torchrun, Ray Train), every one of them calls this.

    Args:
        file: YAML, see ``TransformerTraining`` and ``training.settings.load_stages``.
        output: folder; each stage has one of its own in it where there are several.
        encode_only: stop when the latents and embeddings of all stages are in the cache.

    Returns:
        The last figures on samples held out.

    Raises:
        UsageError: the request is wrong; said before work starts.
    """
    stages = load(file, changes=changes)
    check_folder(output)
    for stage in stages:  # that the last one asks for a score that no clip has is not to be found out after days
        train, _ = open_parts(stage.config.data, stage.config.data.held_out)
        preflight(stage.config.data, catalogue=train)
        check_tags(train, stage.config.text.tag_dropout)
        if stage.config.packing is not None and not encode_only:
            check_learns(stage.config.packing.attention)
    figures: dict[str, float] = {}
    before: Path | None = None
    note = functools.partial(note_stages, output, [stage.name for stage in stages])
    with joined():
        for stage in stages:
            config, folder = stage.config, output / stage.name
            world = find_world(context_parallel=config.training.context_parallel)
            if stage.name and world.is_first:
                say(f"stage {stage.name}")
            cache = Path(config.cache) if config.cache else output / "cache"
            ready = get_ready(config, cache=cache, before=None if encode_only else before, world=world, say=say)
            if not encode_only:
                begun_from = progress_of(before) if before is not None else None
                figures = _train(config, ready, folder, world, say, begun_from=begun_from, note=note)
            before = folder / WEIGHTS
    return figures


def on_worker(request: dict[str, Any]) -> None:
    """What each worker of a Ray cluster does."""
    train_transformer(
        Path(request["file"]),
        Path(request["output"]),
        changes=request["changes"],
        encode_only=request.get("encode_only", False),
    )


def _train(
    config: TransformerTraining,
    ready: Ready,
    folder: Path,
    world: World,
    say: Callable[[str], None],
    *,
    begun_from: str | None,
    note: Callable[[], None],
) -> dict[str, float]:
    torch.manual_seed(config.training.seed)
    models = ready.models
    model = Transformer.from_pretrained(models.start) if models.start else Transformer(models.transformer)
    model.config = models.transformer  # with the tokens of a text
    scales = None
    if lora := config.model.lora:
        begun_from = digest_of(model)
        scales = add_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    if config.packing:
        model.attention = attention(config.packing.attention)
    if config.training.save_memory:
        checkpoint_blocks(model)
    batches = LatentBatches(
        ready.samples,
        ready.kept,
        plan=ready.plan,
        packed=config.packing is not None,
        decides=ready.plan.decides,
        rank=world.data_rank,
        world=world.data_size,
        accumulate=config.training.accumulate,
        prefetch=config.data.prefetch,
    )
    held_out: list[Loaded] = [ready.kept.load(sample) for sample in ready.judged]
    task = TransformerTask(
        model,
        config.optimiser,
        diffusion=models.diffusion,
        vae_config=ready.parts.vae_config,
        world=world,
        seed=config.training.seed,
        conditions=config.conditions,
        judge=config.judge,
        held_out=held_out,
        vae=ready.vae,
        chunks=config.vae.chunks,
        tiles=config.vae.tiles,
        parts=ready.parts,
        scales=scales,
        tokens=models.tokens,
    )
    with warnings.catch_warnings():
        # A pack's outputs are parts of one tensor; nothing changes them in place, of which FSDP warns.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        trainer = Trainer(
            task, batches, config.training, folder=folder, world=world, say=say, begun_from=begun_from, note=note
        )
        return trainer.train()


train = train_transformer
