"""From settings to what the loop needs: models that do not learn, latents and embeddings in the cache, the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from captioning.tags import EVERY_TAG
from curation.errors import UsageError
from shards.read import Catalogue
from training import weights
from training.checkpoint import on_first
from training.data.held_out import open_parts
from training.data.preflight import preflight
from training.distributed import World
from training.pretrained import fetch
from training.transformer.batches import Kept
from training.transformer.cache import Cache
from training.transformer.config import TransformerConfig, size
from training.transformer.contents import captions, contents, note_contents, tagged
from training.transformer.diffusion import Diffusion
from training.transformer.encode import LatentEncoder, Say, encode_latents, encode_texts, scaling_factor
from training.transformer.extend import check_positions
from training.transformer.lora import add_lora
from training.transformer.model import Transformer
from training.transformer.pipeline import Parts
from training.transformer.plan import Plan
from training.transformer.samples import Sample, name, readable, views
from training.transformer.sources import WORDS, TextFolders, digest_of_files, find_text
from training.transformer.text import TextEncoder
from training.vae.config import Chunks, Tiles, VAEConfig
from training.vae.model import VAE

if TYPE_CHECKING:
    from training.transformer.run import TransformerTraining

_PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Models:
    """What is known of the models before any is loaded.

    Attributes:
        start: folder of the transformer's weights; None: random ones.
        vae: folder of the VAE.
        text: None for the words of the captions, which have to be read first.
        tokens: of a text.
    """

    start: Path | None
    transformer: TransformerConfig
    vae: Path
    vae_config: VAEConfig
    text: TextFolders | None
    tokens: int
    diffusion: Diffusion


@dataclasses.dataclass(frozen=True)
class Ready:
    """Everything is encoded: what the loop reads."""

    models: Models
    samples: list[Sample]
    judged: list[Sample]
    kept: Kept
    plan: Plan
    vae: VAE | None  # to draw samples with
    parts: Parts


def find_models(config: TransformerTraining, *, before: Path | None = None) -> Models:
    """The models that the settings name, and whether they go together.

    Args:
        before: the ``weights`` of the stage before, from which this one goes on.

    Raises:
        UsageError: one is missing, or does not fit the others.
    """
    start = before
    if before is None and config.model.start is not None:
        start = fetch(config.model.start, "transformer", "scheduler")
    if start is None:
        transformer = size(str(config.model.size))
    else:
        folder = weights.find(start, part="transformer")
        transformer = weights.read_config(folder, TransformerConfig.from_mapping, part="transformer")
    vae = weights.find(before if before is not None else fetch(config.vae.start, "vae"), part="vae")
    vae_config = weights.read_config(vae, VAEConfig.from_mapping, part="vae")
    if vae_config.latent_channels != transformer.out_channels:
        raise UsageError(
            f"{vae} makes latents of {vae_config.latent_channels} channels, and the transformer reads "
            f"{transformer.out_channels}: choose a VAE and a transformer that belong together"
        )
    _check_transformer(config, transformer, vae_config)
    text = None if config.text.start == WORDS else find_text(config.text.start)
    if text is not None and text.width != transformer.text_embed_dim:
        raise UsageError(
            f"{text.encoder} makes embeddings of {text.width} numbers, and the transformer reads "
            f"{transformer.text_embed_dim}"
        )
    tokens = config.text.tokens or transformer.max_text_seq_length
    if tokens != transformer.max_text_seq_length:
        if transformer.use_learned_positional_embeddings:
            raise UsageError(
                f"text.tokens {tokens}: this transformer has learned positions for "
                f"{transformer.max_text_seq_length} tokens of text; leave it out"
            )
        # What is written says it, for samples are to be asked for with texts of the length that was learned.
        transformer = dataclasses.replace(transformer, max_text_seq_length=tokens)
    diffusion = config.diffusion or (Diffusion() if start is None else Diffusion.from_pretrained(start))
    return Models(start, transformer, vae, vae_config, text, tokens, diffusion)


def _check_transformer(config: TransformerTraining, transformer: TransformerConfig, vae: VAEConfig) -> None:
    """Raise UsageError if it cannot be trained as the settings say."""
    if transformer.num_attention_heads % config.training.context_parallel:
        raise UsageError(
            f"training.context_parallel {config.training.context_parallel} does not divide the transformer's "
            f"{transformer.num_attention_heads} heads"
        )
    if lora := config.model.lora:  # on nothing: whether there are such layers
        with torch.device("meta"):
            add_lora(Transformer(transformer), rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    for bucket in config.data.buckets:
        try:
            check_positions(transformer, vae, frames=bucket.frames, height=bucket.height, width=bucket.width)
        except UsageError as error:
            raise UsageError(f"data.buckets: {error}") from error


def prepare(config: TransformerTraining, *, cache: Path, before: Path | None, world: World, say: Say) -> Ready:
    """Encode what is not in the cache yet, on all ranks, and plan.

    Raises:
        UsageError: the settings cannot be met.
        BadDataError: more clips are bad than the settings bear.
    """
    models = find_models(config, before=before)
    train, judge = open_parts(config.data, config.data.held_out)
    preflight(config.data, catalogue=train)  # an empty bucket is said before anything is encoded
    plan = plan_of(config, models, train)
    plan(0)  # and so is a sample that fits no pack
    text = models.text or _words(cache, train, models.transformer.text_embed_dim, world)
    kept = Kept(Cache(cache / "latents"), Cache(cache / "texts"))
    if world.is_first:
        kept.latents.sweep()
        kept.texts.sweep()
    vae = VAE.from_pretrained(models.vae)
    encoder = _encoder(config, vae, world)
    names: dict[str, Any] = {
        "vae": encoder.name,
        "text": f"{digest_of_files(text, notes=cache / 'files.json')} {models.tokens} {config.text.precision}",
        "image": encoder.image_name if models.transformer.reads_image else None,
    }
    named = []
    for catalogue in (train, judge):
        note_contents(catalogue, folder=cache / "contents", rank=world.rank, size=world.size)
        world.wait()
        known = contents(catalogue, folder=cache / "contents")
        texts = tagged([one.caption for one in known], catalogue, config.text.tag_dropout)
        known = [one._replace(caption=text) for one, text in zip(known, texts, strict=True)]
        samples = name(views(catalogue, config.data), known, config.data, **names)
        if catalogue is judge:
            samples = sorted(samples, key=lambda sample: sample.latent)[: config.judge.samples]
        encode_latents(samples, catalogue, config.data, encoder=encoder, cache=kept.latents, world=world, say=say)
        named.append(readable(samples, kept.latents))
    dtype = _PRECISIONS[config.text.precision]
    encode_texts(
        named[0] + named[1],
        load=lambda: TextEncoder.from_pretrained(_common(text), tokens=models.tokens, dtype=dtype),
        cache=kept.texts,
        world=world,
        say=say,
    )
    measured = config.vae.scaling == "measure" and before is None
    factor = models.vae_config.scaling_factor
    if measured:
        factor = world.of_first(scaling_factor(named[0], kept.latents) if world.is_first else None)
    vae.config = dataclasses.replace(models.vae_config, scaling_factor=factor)
    return Ready(
        models=models,
        samples=named[0],
        judged=named[1],
        kept=kept,
        plan=dataclasses.replace(plan, views=[sample.view for sample in named[0]]),
        vae=vae if config.judge.shown else None,
        parts=Parts(
            vae=models.vae, vae_config=vae.config, text=(text.encoder, text.tokenizer), diffusion=models.diffusion
        ),
    )


def plan_of(config: TransformerTraining, models: Models, catalogue: Catalogue) -> Plan:
    """How the samples of a catalogue would fall into groups, if all of them could be read."""
    found = views(catalogue, config.data)
    return Plan(found, config.data, config.packing, models.transformer, models.vae_config, models.tokens)


def _encoder(config: TransformerTraining, vae: VAE, world: World) -> LatentEncoder:
    return LatentEncoder(
        vae,
        chunks=Chunks() if config.vae.chunked else None,
        tiles=Tiles() if config.vae.tiled else None,
        precision=config.vae.precision,
        noise=config.conditions.image_noise,
        device=world.device,
    )


def _words(cache: Path, train: Catalogue, width: int, world: World) -> TextFolders:
    """The encoder of the captions' words and of those of all tags. It is made once: its words stay what they are."""
    folder = cache / f"vocabulary-{width}"

    def make() -> None:
        from training.transformer.words import write_words

        if not folder.is_dir():
            write_words(folder, [*captions(train), EVERY_TAG], width=width)

    on_first(world, make)
    return TextFolders(folder / "text_encoder", folder / "tokenizer")


def _common(text: Sequence[Path]) -> Path:
    """The folder from which both parts are loaded."""
    return text[0] if text[0] == text[1] else text[0].parent
