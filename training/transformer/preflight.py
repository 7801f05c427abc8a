"""What a training of the transformer will read, said before it starts and before anything is encoded."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.held_out import open_parts
from training.data.preflight import Preflight, preflight
from training.distributed import check_division
from training.settings import TrainingStage
from training.transformer import packing
from training.transformer.contents import captions, check_tags, tagged
from training.transformer.prepare import find_models, plan_of
from training.transformer.run import TransformerTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeReport:
    """The samples of one shape."""

    bucket: str
    kind: str  # clips | images
    samples: int
    tokens: int  # of each, with its text


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerPreflight:
    """The report of one stage.

    Attributes:
        data: of the clips: what is dropped and why, and what crops leave out.
        groups: packs or batches in an epoch of the whole world.
        unit: ``packs`` or ``batches``.
        steps: of every rank in an epoch.
        fill: share of the packs' tokens that samples have; None for batches.
        words: tokens of a text.
        long_captions: clips whose captions are cut, having more; None where the words are those of the captions.
    """

    data: Preflight
    shapes: list[ShapeReport]
    groups: int
    unit: str
    steps: int
    fill: float | None
    words: int
    long_captions: int | None

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dataclasses.asdict(self)


def look_ahead(
    stages: Sequence[TrainingStage[TransformerTraining]], *, world: int = 1
) -> dict[str, TransformerPreflight]:
    """What each stage will read, by its name. Of samples that cannot be decoded nothing is known yet.

    Raises:
        UsageError: a bucket that no sample goes to, a sample that fits no pack, models that do not fit together, or
            scores to say that no clip has.
    """
    reports = {stage.name: _report(stage.config, world) for stage in stages}
    for stage in stages:
        check_division(world, stage.config.training.context_parallel)
    return reports


def _report(config: TransformerTraining, world: int) -> TransformerPreflight:
    models = find_models(config)
    train, _ = open_parts(config.data, config.data.held_out)
    # Images are counted here, where they are samples of their own.
    data = preflight(dataclasses.replace(config.data, images=0.0), world=world, catalogue=train)
    plan = plan_of(config, models, train)
    groups, lengths = plan(0), plan.lengths
    counts = collections.Counter((view.bucket, view.is_image) for view in plan.views)
    tokens = {(view.bucket, view.is_image): plan.tokens(view) for view in plan.views}
    long: int | None = None
    check_tags(train, config.text.tag_dropout)
    if models.text is not None:
        texts = tagged(captions(train), train, config.text.tag_dropout)
        clips = collections.Counter(texts[row] for row in {view.row for view in plan.views})
        counted = zip(clips.values(), _counts(models.text.tokenizer, list(clips)), strict=True)
        long = sum(number for number, count in counted if count > models.tokens)
    per_step = max(1, world // config.training.context_parallel) * config.training.accumulate
    steps = -(-len(groups) // per_step)
    return TransformerPreflight(
        data=dataclasses.replace(data, batches=len(groups), steps=steps),
        shapes=[
            ShapeReport(
                bucket=str(config.data.buckets[bucket]),
                kind="images" if is_image else "clips",
                samples=count,
                tokens=tokens[bucket, is_image],
            )
            for (bucket, is_image), count in sorted(counts.items())
        ],
        groups=len(groups),
        unit="batches" if config.packing is None else "packs",
        steps=steps,
        fill=packing.fill(groups, lengths, tokens=config.packing.tokens) if config.packing else None,
        words=models.tokens,
        long_captions=long,
    )


def _counts(tokenizer: Path, texts: list[str]) -> list[int]:
    """Tokens of each text, the closing one included."""
    from curation.torchvision import mend

    mend()
    from transformers import AutoTokenizer

    return [len(ids) for ids in AutoTokenizer.from_pretrained(tokenizer)(texts).input_ids] if texts else []
