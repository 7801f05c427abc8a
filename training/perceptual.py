"""LPIPS: how different two pictures look, by the features of a network trained on photographs."""

from __future__ import annotations

import dataclasses
import urllib.error
import warnings
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from curation.errors import UsageError
from curation.torchvision import mend
from training.quality import frames
from training.settings import STRICT

_TRUNKS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}

LEAST_SIDES = {"vgg": 16, "alex": 31, "squeeze": 17}  # px: the trunk leaves nothing of less


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualSettings:
    """LPIPS as a loss.

    Attributes:
        weight: of it in the loss; 0 leaves it out, and needs no weights.
        network: whose features are compared.
        trunk: a file with torchvision's ImageNet weights of that network (.pth or .safetensors); null is torchvision's
            own, which it downloads once.
        frames: so many frames of each video are compared, chosen at random at each step; null: all.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    weight: float = 0.0
    network: Literal["vgg", "alex", "squeeze"] = "vgg"
    trunk: str | None = None
    frames: Annotated[int, Ge(1)] | None = None


def check_sides(settings: PerceptualSettings, height: int, width: int) -> None:
    """Raises UsageError for pictures that are too small for the network."""
    least = LEAST_SIDES[settings.network]
    if min(height, width) < least:
        size = f"{height}x{width}"
        raise UsageError(f"LPIPS by {settings.network} takes pictures of at least {least} px a side, not {size}")


class Perceptual(nn.Module):
    """LPIPS (Zhang et al. 2018) by the ``lpips`` library, with its linear heads and the trunk of the settings.

    Raises:
        UsageError: the weights of the trunk are not there, or are not of this network.
    """

    def __init__(self, settings: PerceptualSettings) -> None:
        super().__init__()
        mend()
        import lpips

        self.settings = settings
        # Its own way of loading the trunk has no place for a file and downloads without saying what is missing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks torchvision for an empty trunk in a way that is on its way out
            self.lpips = lpips.LPIPS(net=settings.network, pnet_rand=True, verbose=False)
        _fill(self.lpips.net, _trunk(settings), settings)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Perceptual:
        """Stays as it is: it is a measure, and learns nothing."""
        return super().train(False)

    def forward(self, video: Tensor, original: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """A mean over frames of (B, 3, T, H, W) in -1..1, to (B,). With ``rng``, over some frames drawn at random."""
        count = self.settings.frames
        if rng is not None and count is not None and count < video.shape[2]:
            chosen = torch.randperm(video.shape[2], generator=rng, device=rng.device)[:count].to(video.device)
            video, original = video[:, :, chosen], original[:, :, chosen]
        values: Tensor = self.lpips(frames(video), frames(original))  # (B T, 1, 1, 1)
        return values.float().view(len(video), -1).mean(dim=1)


def _trunk(settings: PerceptualSettings) -> dict[str, Tensor]:
    if settings.trunk is not None:
        return _read(Path(settings.trunk))
    import torchvision

    weights = getattr(torchvision.models, _TRUNKS[settings.network]).IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UsageError(
            f"perceptual loss: the weights of {settings.network} are not on this machine and cannot be downloaded "
            f"({error}): fetch {weights.url} and name the file in `perceptual.trunk`, or set `perceptual.weight` to 0"
        ) from error
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"perceptual.trunk: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the file holds
        raise UsageError(f"perceptual.trunk: {path} cannot be read as weights: {error}") from error
    return state


def _fill(net: nn.Module, state: dict[str, Tensor], settings: PerceptualSettings) -> None:
    """Give the trunk torchvision's weights. It holds their layers under the same numbers, in slices."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            stored = state.get(f"features.{name.split('.', 1)[1]}")
            if stored is None or stored.shape != weight.shape:
                raise UsageError(
                    f"perceptual.trunk: {settings.trunk} holds no weights of torchvision's {settings.network} "
                    f"(features.{name.split('.', 1)[1]} is missing or of another shape)"
                )
            weight.copy_(stored)
