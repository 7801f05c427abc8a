"""What a training of the transformer is told: the fields of its YAML file, besides ``data`` and ``training``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from curation.errors import UsageError, nearest
from training.settings import STRICT
from training.transformer.attention import attention
from training.transformer.conditions import MASKS
from training.vae.config import Chunks, Tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Train small additions to frozen weights (LoRA, arXiv 2106.09685) instead of the weights.

    Attributes:
        rank: of the additions.
        alpha: they are multiplied by ``alpha / rank``; null: by 1.
        targets: layers of each block that get one, as peft names them.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    rank: int = 64
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which transformer to begin with.

    Attributes:
        size: one of ``training.transformer.config.SIZES``, with random weights.
        start: weights to go on from, instead of ``size``: a folder of a transformer or of a whole pipeline, or its id
            on the Hugging Face hub.
        lora: train additions; null trains all weights.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    size: str | None = None
    start: str | None = None
    lora: LoraSettings | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAESettings:
    """The VAE whose latents are learned. It does not learn.

    Attributes:
        start: folder of a VAE or of a pipeline, or an id on the hub; null: that of ``model.start``'s pipeline.
        scaling: ``config``: latents are scaled by the factor in the VAE's ``config.json``, as published ones are.
            ``measure``: by one over the standard deviation of the latents to train on, for a VAE of one's own; it is
            written into the ``config.json`` beside the transformer, and later stages take it from there.
        chunked: frames pass through 8 at a time, as CogVideoX was trained; otherwise each clip whole.
        tiled: pictures larger than 240x360 pass through in tiles, which takes less memory and changes latents a little.
        precision: in which latents are computed.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    start: str | None = None
    scaling: Literal["config", "measure"] = "config"
    chunked: bool = True
    tiled: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"

    @property
    def chunks(self) -> Chunks | None:
        """How frames pass through; None: all at a time."""
        return Chunks() if self.chunked else None

    @property
    def tiles(self) -> Tiles | None:
        """How pictures do; None: whole."""
        return Tiles() if self.tiled else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The encoder of captions. It does not learn.

    Attributes:
        start: folder of a T5 encoder with its tokenizer or of a pipeline, or an id on the hub; null: that of
            ``model.start``'s pipeline. ``words``: a word list of the captions with a random vector for each, for small
            models of a small world (see words.py).
        tokens: that a caption is cut or filled to; null: as many as the transformer is made for.
        precision: in which captions are encoded and kept.
        tag_dropout: say the scores of a clip behind its caption, as in "A dog runs. aesthetic score: 5.5, motion score:
            0.12, camera motion: pan left", so that a prompt can ask for them. Each is left out with this probability,
            decided once by caption and scores, so that prompts work without them too. null: nothing is said.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    start: str | None = None
    tokens: Annotated[int, Ge(1)] | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    tag_dropout: float | None = None

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        if self.tag_dropout is not None and not 0 <= self.tag_dropout < 1:
            raise UsageError(f"text.tag_dropout {self.tag_dropout:g}: a share below 1 is meant, such as 0.3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """What is given to the model beside the noise, and how often.

    Attributes:
        drop_caption: share of the samples whose text is zeros, which guidance needs.
        frames: for some of ``conditions.MASKS``, the share of the clips in which those frames are given: they are left
            without noise, have t = 0 and no loss. The other clips, and images, have none.
        drop_image: image-to-video only: share of the samples whose first frame is zeros.
        image_noise: image-to-video only: mean and deviation of the logarithm of the noise on the first frame, in pixel
            values of -1..1; null: none. It is drawn once for each sample, when latents are encoded.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    drop_caption: float = 0.1
    frames: dict[str, float] = dataclasses.field(default_factory=dict)
    drop_image: float = 0.05
    image_noise: tuple[float, float] | None = (-3.0, 0.5)

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        for name, value in (("drop_caption", self.drop_caption), ("drop_image", self.drop_image), *self.frames.items()):
            if not 0 <= value <= 1:
                raise UsageError(f"conditions.{name} {value:g}: a share between 0 and 1 is meant")
        for name in self.frames:
            if name not in MASKS:
                raise UsageError(f"conditions.frames: there is no {name!r}.{nearest(name, MASKS)}")
        if (total := sum(self.frames.values())) > 1 + 1e-9:
            raise UsageError(f"conditions.frames: the shares add up to {total:g}, more than 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingSettings:
    """Samples of any shape in one sequence (Frame Pack), instead of batches of one shape.

    Attributes:
        tokens: of text and video together that a pack may have. One pack is what a rank computes at a time.
        look_ahead: samples among which the packer looks for one that fits; more fill better and mix less.
        attention: how samples are kept apart, see attention.py: ``varlen`` or ``flex`` on a GPU.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    tokens: int
    look_ahead: int = 256
    attention: str = "split"

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        attention(self.attention)
        if self.tokens < 1 or self.look_ahead < 1:
            raise UsageError("packing: tokens and look_ahead of 1 or more are meant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """How the model is judged while it learns.

    Attributes:
        samples: held out, whose loss is measured, each at every timestep of the grid with noise that never changes.
        timesteps: of the grid, spread evenly; the loss of each is reported too.
        shown: videos that are made of captions held out, as a picture of how far it is; 0: none.
        steps, guidance: with which they are made.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    samples: int = 32
    timesteps: int = 10
    shown: int = 4
    steps: int = 25
    guidance: float = 6.0

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        if min(self.samples, self.timesteps, self.steps) < 1 or self.shown < 0:
            raise UsageError("judge: samples, timesteps and steps of 1 or more are meant, and shown of 0 or more")
