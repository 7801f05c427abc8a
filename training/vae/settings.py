"""What a training of the VAE is told: the fields of its YAML file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, MultipleOf

from curation.errors import UsageError
from training.perceptual import PerceptualSettings
from training.settings import STRICT, OptimiserSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model to begin with.

    Attributes:
        size: one of ours, with random weights: ``debug``, ``small`` or ``full``.
        start: a folder with weights to go on from (``config.json`` and safetensors, as diffusers has them), such as
            the ``weights`` of an earlier training; instead of ``size``.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    size: str | None = None
    start: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """The discriminator and what it adds to the loss.

    Attributes:
        weight: of the adversarial gradient, in lengths of the gradient of everything else; 0: no discriminator.
        start: the step from which both play; before it neither learns from the other.
        frames: the discriminator is shown at most so many frames in a row, at a place drawn at random.
        penalty: weight of the gradient on real videos (R1); 0 leaves it out. Twice the time of a discriminator's step.
        width, depth, time_depth: of the discriminator.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    weight: float = 0.0
    start: Annotated[int, Ge(0)] = 2000
    frames: Annotated[int, Ge(1)] = 17
    penalty: float = 0.0
    width: Annotated[int, Gt(0), MultipleOf(8)] = 64
    depth: Annotated[int, Ge(1)] = 3
    time_depth: Annotated[int, Ge(0)] = 2
    optimiser: OptimiserSettings = dataclasses.field(default_factory=lambda: OptimiserSettings(betas=(0.5, 0.9)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What a reconstruction is judged by.

    Attributes:
        reconstruction: mean absolute (``l1``) or squared (``l2``) difference of pixel values in -1..1.
        kl: weight of the latent's divergence from a standard normal, in nats per pixel value of the video.
        perceptual: LPIPS.
        adversarial: the discriminator.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    reconstruction: Literal["l1", "l2"] = "l1"
    kl: float = 1e-6
    perceptual: PerceptualSettings = dataclasses.field(default_factory=PerceptualSettings)
    adversarial: AdversarialSettings = dataclasses.field(default_factory=AdversarialSettings)

    def check(self) -> None:
        """Raises UsageError with the value that makes no sense."""
        for name, value in (
            ("kl", self.kl),
            ("perceptual.weight", self.perceptual.weight),
            ("adversarial.weight", self.adversarial.weight),
            ("adversarial.penalty", self.adversarial.penalty),
        ):
            if value < 0:
                raise UsageError(f"loss.{name} {value:g}: 0 or more is meant")
        trunk = self.perceptual.trunk
        if self.perceptual.weight and trunk is not None and not Path(trunk).is_file():
            raise UsageError(f"loss.perceptual.trunk: there is no file {trunk}")
