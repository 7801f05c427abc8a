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
from training.transformer.models import find_sat
from training.transformer.pipeline import Parts
from training.transformer.plan import Plan
from training.transformer.samples import Sample, name, readable, views
from training.transformer.sources import WORDS, TextFolders, digest_of_files, find_text
from training.transformer.text import TextEncoder
from training.vae.config import VAEConfig
from training.vae.model import VAE

if TYPE_CHECKING:
    from training.transformer.run import TransformerTraining

_PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Found:
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

    models: Found
    samples: list[Sample]
    judged: list[Sample]
    kept: Kept
    plan: Plan
    vae: VAE | None  # to draw samples with
    parts: Parts


def find_models(config: TransformerTraining, *, before: Path | None = None) -> Found:
    """The models that the settings name, and whether they go together.

    Args:
        before: the ``weights`` of the stage before, from which this one goes on.

    Raises:
        UsageError: one is missing, or does not fit the others.
    """
    start, pipeline = before, before
    if before is None and config.model.start is not None:
        text_parts = () if config.text.start else ("text_encoder", "tokenizer")
        start = fetch(config.model.start, "transformer", "scheduler", "vae", *text_parts)
        if find_sat(start) is not None:
            raise UsageError(
                f"model.start {start} is a checkpoint of SAT: convert it first, by cutroom convert {start} FOLDER "
                "--to diffusers, and name the new folder"
            )
    if start is None:
        transformer = size(str(config.model.size))
    else:
        folder = weights.find(start, part="transformer")
        transformer = weights.read_config(folder, TransformerConfig.from_mapping, part="transformer")
        pipeline = folder.parent if folder.name == "transformer" else None
    named = None if before is not None else config.vae.start
    vae = weights.find(fetch(named, "vae") if named else _part(config, pipeline, "vae"), part="vae")
    vae_config = weights.read_config(vae, VAEConfig.from_mapping, part="vae")
    if named and pipeline and (pipeline / "vae" / weights.CONFIG).is_file():
        learned = weights.read_config(pipeline / "vae", VAEConfig.from_mapping, part="vae")
        _check_scale(config, vae_config, learned, reads_image=transformer.reads_image)
    if vae_config.latent_channels != transformer.out_channels:
        raise UsageError(
            f"{vae} makes latents of {vae_config.latent_channels} channels, and the transformer reads "
            f"{transformer.out_channels}: choose a VAE and a transformer that belong together"
        )
    _check_transformer(config, transformer, vae_config)
    with torch.device("meta"):  # where nothing is filled in
        parts = {vae: VAE(vae_config), **({} if start is None else {folder: Transformer(transformer)})}
    for place, module in parts.items():
        weights.check_names(place, wanted=module.state_dict(), found=weights.read_shapes(place))
    source = config.text.start or str(_part(config, pipeline, "text_encoder").parent)
    text = None if source == WORDS else find_text(source)
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
    return Found(start, transformer, vae, vae_config, text, tokens, diffusion)


def _part(config: TransformerTraining, pipeline: Path | None, part: str) -> Path:
    """The folder of a part that the transformer came with; UsageError, with what to set, if there is none."""
    if pipeline is not None and (pipeline / part / weights.CONFIG).is_file():
        return pipeline / part
    setting = {"vae": "vae.start", "text_encoder": "text.start"}[part]
    came = f"model.start {config.model.start}" if config.model.start else f"model.size {config.model.size}"
    raise UsageError(f"{setting} is not set, and {came} brings no {part}: set {setting} to the one that belongs to it")


def _check_scale(config: TransformerTraining, vae: VAEConfig, learned: VAEConfig, *, reads_image: bool) -> None:
    """Raise UsageError if a VAE scales latents otherwise than the one that the transformer has ``learned`` with."""
    measured = config.vae.scaling == "measure"  # then the transformer gets used to a scale that is the VAE's own
    fields = [] if measured else ["scaling_factor"]
    if reads_image or not measured:  # of the first frame; no measurement tells
        fields.append("invert_scale_latents")
    for field in fields:
        given, wanted = getattr(vae, field), getattr(learned, field)
        if given != wanted:
            raise UsageError(
                f"vae.start {config.vae.start} has {field} {given}, and model.start {config.model.start} has learned "
                f"with {wanted}: leave vae.start out to take its own VAE; for a VAE of yours set {field} in its "
                f"{weights.CONFIG}{'' if measured else ', or vae.scaling: measure'}"
            )


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


def get_ready(config: TransformerTraining, *, cache: Path, before: Path | None, world: World, say: Say) -> Ready:
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


def plan_of(config: TransformerTraining, models: Found, catalogue: Catalogue) -> Plan:
    """How the samples of a catalogue would fall into groups, if all of them could be read."""
    found = views(catalogue, config.data)
    return Plan(found, config.data, config.packing, models.transformer, models.vae_config, models.tokens)


def _encoder(config: TransformerTraining, vae: VAE, world: World) -> LatentEncoder:
    return LatentEncoder(
        vae,
        chunks=config.vae.chunks,
        tiles=config.vae.tiles,
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
