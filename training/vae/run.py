"""``cutroom train vae``: from a YAML file to a trained VAE, stage by stage."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from curation.errors import UsageError
from curation.model_files import is_path
from shards.read import Catalogue
from training import weights
from training.data.faults import BadDataError
from training.data.held_out import open_parts
from training.data.loader import Batch, Loader
from training.data.preflight import Preflight, preflight
from training.data.settings import Bucket, DataSettings
from training.distributed import World, check_division, find_world, joined, num_processes
from training.folders import WEIGHTS, check_folder, note_stages, progress_of, role_file
from training.loop import Trainer
from training.metrics import check_wandb
from training.perceptual import Perceptual, check_sides
from training.pretrained import fetch
from training.settings import STRICT, OptimiserSettings, Training, TrainingStage, load_stages
from training.vae.config import VAEConfig, size
from training.vae.discriminator import Discriminator
from training.vae.model import VAE, checkpoint_blocks
from training.vae.parallel import split_frames
from training.vae.settings import LossSettings, ModelSettings
from training.vae.task import DISCRIMINATOR, VAETask

_JUDGED = 32  # samples held out that are looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAETraining:
    """The whole YAML file of a VAE's training (one stage of it, where it has ``stages``)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    data: DataSettings
    training: Training
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    optimiser: OptimiserSettings = dataclasses.field(default_factory=OptimiserSettings)

    def check(self) -> None:
        """What can be known before work starts.

        Raises:
            UsageError: with the value that makes no sense.
        """
        self.data.check()
        self.training.check()
        self.loss.check()
        check_wandb(self.training.wandb)
        for bucket in self.data.buckets:
            if bucket.frames % 4 != 1 or bucket.height % 8 or bucket.width % 8:
                raise UsageError(
                    f"data.buckets: {bucket} does not fit the VAE, which takes 4k+1 frames (such as 17) "
                    f"of sides divisible by 8"
                )
            try:
                split_frames(bucket.frames, self.training.context_parallel)
            except ValueError as error:
                raise UsageError(f"training.context_parallel with data.buckets {bucket}: {error}") from error
            if self.loss.perceptual.weight:
                check_sides(self.loss.perceptual, bucket.height, bucket.width)
            if self.loss.adversarial.weight:
                self._check_discriminator(bucket)
        if self.training.context_parallel > 1 and self.data.images:
            raise UsageError("data.images: the one frame of an image cannot be shared by training.context_parallel")

    def _check_discriminator(self, bucket: Bucket) -> None:
        like = self.loss.adversarial
        with torch.device("meta"):  # where nothing is computed
            discriminator = Discriminator(width=like.width, depth=like.depth, time_depth=like.time_depth)
            for frames in [min(bucket.frames, like.frames), *([1] if self.data.images else [])]:
                try:
                    discriminator(torch.empty(1, 3, frames, bucket.height, bucket.width))
                except RuntimeError as error:
                    raise UsageError(
                        f"data.buckets: {bucket} is too small for loss.adversarial of depth {like.depth}, "
                        f"time_depth {like.time_depth}: lower them, or start with larger pictures"
                    ) from error


def load(file: Path, *, changes: Sequence[str] = ()) -> list[TrainingStage[VAETraining]]:
    """Read and check a VAE's training.

    Raises:
        UsageError: a mistake, with its place in the file where it stands there.
    """
    stages = load_stages(file, VAETraining, changes=changes)
    for stage in stages:
        stage.config.check()
    for model in dict.fromkeys(stage.config.model for stage in stages):
        if (model.size is None) == (model.start is None):
            raise UsageError(
                f"{file}: model: either `size` (debug, small, full) or `start` (a folder with weights) is meant"
            )
        if model.size is not None:
            size(model.size)
        if model.start is not None and is_path(model.start):
            weights.read_config(weights.find(model.start, part="vae"), VAEConfig.from_mapping, part="vae")
    return stages


def train_vae(
    file: Path, output: Path, *, changes: Sequence[str] = (), say: Callable[[str], None] = print
) -> dict[str, float]:
    """Train a VAE, or go on where an earlier call with the same folder was stopped.

    Where processes were started to train together (torchrun, Ray Train), every one of them calls this.

    Args:
        file: YAML, see ``VAETraining`` and ``training.settings.load_stages``.
        output: folder; each stage has one of its own in it where there are several.

    Returns:
        The last figures on samples held out.

    Raises:
        UsageError: the request is wrong; said before work starts.
    """
    stages = load(file, changes=changes)
    check_folder(output)
    for stage in stages:
        check_division(num_processes(), stage.config.training.context_parallel)
    figures: dict[str, float] = {}
    before: TrainingStage[VAETraining] | None = None
    note = functools.partial(note_stages, output, [stage.name for stage in stages])
    with joined():
        for stage in stages:
            config, folder = stage.config, output / stage.name
            world = find_world(context_parallel=config.training.context_parallel)
            # A stage goes on from the one before, unless it names another model than that one did.
            goes_on = before is not None and config.model == before.config.model
            start = str(output / before.name / WEIGHTS) if before is not None and goes_on else config.model.start
            if stage.name and world.is_first:
                say(f"stage {stage.name}")
            begun_from = progress_of(Path(start)) if goes_on and start else None
            figures = _train(config, start, folder, world, say, begun_from=begun_from, note=note)
            before = stage
    return figures


def look_ahead(stages: Sequence[TrainingStage[VAETraining]], *, world: int = 1) -> dict[str, Preflight]:
    """What each stage will read, by its name.

    Raises:
        UsageError: a bucket that no sample goes to, or a stage that so many processes cannot train.
    """
    reports = {}
    for like in dict.fromkeys(stage.config.loss.perceptual for stage in stages if stage.config.loss.perceptual.weight):
        Perceptual(like)  # a trunk that is missing would show itself only after the stages before
    for stage in stages:
        data, shared = stage.config.data, stage.config.training.context_parallel
        check_division(world, shared)
        train, _ = open_parts(data, data.held_out)
        reports[stage.name] = preflight(data, world=max(1, world // shared), catalogue=train)
    return reports


def on_worker(request: dict[str, Any]) -> None:
    """What each worker of a Ray cluster does."""
    train_vae(Path(request["file"]), Path(request["output"]), changes=request["changes"])


def _train(
    config: VAETraining,
    start: str | None,
    folder: Path,
    world: World,
    say: Callable[[str], None],
    *,
    begun_from: str | None,
    note: Callable[[], None],
) -> dict[str, float]:
    torch.manual_seed(config.training.seed)
    vae = VAE.from_pretrained(fetch(start, "vae")) if start else VAE(size(str(config.model.size)))
    if config.training.save_memory:
        checkpoint_blocks(vae)
    train, judge = open_parts(config.data, config.data.held_out)
    with Loader(config.data, catalogue=train, rank=world.data_rank, world=world.data_size) as batches:
        held_out = _held_out(config.data, judge, world, say if world.is_first else lambda text: None)
        task = VAETask(vae, config.loss, config.optimiser, world=world, held_out=held_out)
        if start:
            _take_along(task, Path(start), say if world.is_first else lambda text: None)
        trainer = Trainer(
            task, batches, config.training, folder=folder, world=world, say=say, begun_from=begun_from, note=note
        )
        figures = trainer.train()
        if batches.faults.num_bad:  # each rank reads others
            say(f"bad samples{f' of rank {world.rank}' if world.size > 1 else ''}: {batches.faults}")
    return figures


def _take_along(task: VAETask, start: Path, say: Callable[[str], None]) -> None:
    """The discriminator that an earlier training left beside its weights goes on learning, too."""
    file = role_file(start.parent, DISCRIMINATOR)
    if DISCRIMINATOR not in task.roles or not start.is_dir() or not file.is_file():
        return
    state, module = load_file(file), task.roles[DISCRIMINATOR].module
    if {name: each.shape for name, each in state.items()} == {n: each.shape for n, each in module.state_dict().items()}:
        module.load_state_dict(state)
    else:
        say(f"loss.adversarial: {file} is of another width or depth; a new discriminator begins")


def _held_out(data: DataSettings, judge: Catalogue, world: World, say: Callable[[str], None]) -> list[Batch]:
    """Batches to judge by: the same at every judgement."""
    if not len(judge):
        return []
    settings = dataclasses.replace(
        data, crop="center", flip=0.0, zoom=1.0, prefetch=1, workers=min(1, data.workers), max_bad=1.0
    )
    # A number of batches, not of samples: every rank has as many, for they judge together.
    count, batches, wrong = max(1, _JUDGED // (data.buckets[0].batch_size * world.data_size)), list[Batch](), ""
    try:  # training can do without
        with Loader(settings, catalogue=judge, epochs=1, rank=world.data_rank, world=world.data_size) as loader:
            batches = list(itertools.islice(loader, count))
            wrong = str(loader.faults) if loader.num_bad else ""
    except (UsageError, BadDataError) as error:
        wrong = str(error)
    if wrong:
        say(f"data.held_out {data.held_out:g}: of what is held out {wrong}")
    if not all(world.of_all(bool(batches))):
        say("nothing is judged")
        return []
    return batches


train = train_vae
