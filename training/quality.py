"""How near a reconstruction comes to its original, frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor

from curation.torchvision import mend

_MOST_PSNR = 100.0  # of equal pictures, whose ratio is infinite


def psnr(video: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, a mean over frames. (B, C, T, H, W) in -1..1 to (B,)."""
    error = (to_unit(video) - to_unit(original)).square().mean(dim=(1, 3, 4))  # (B, T)
    return (-10 * torch.log10(error)).clamp(max=_MOST_PSNR).mean(dim=1)


def ssim(video: Tensor, original: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), a mean over frames. (B, C, T, H, W) in -1..1 to (B,).

    Of pictures smaller than its window of 11 pixels it is not known: NaN.
    """
    mend()
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(video.shape[-2:]) < 11:
        return torch.full((len(video),), torch.nan, device=video.device)
    pair = [frames(to_unit(one)) for one in (video, original)]
    with torch.autocast(video.device.type, enabled=False):  # it takes differences of almost equal numbers
        values = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.view(len(video), -1).mean(dim=1)


def flicker(video: Tensor, original: Tensor) -> Tensor:
    """How much the error of the reconstruction changes from frame to frame, in units of full white. To (B,).

    The root mean square of the difference in time of the difference to the original: 0 where the error stands still,
    whatever moves in the video. Images have none: 0.
    """
    error = to_unit(video) - to_unit(original)
    if error.shape[2] < 2:
        return torch.zeros(len(video), device=video.device)
    return error.diff(dim=2).square().mean(dim=(1, 2, 3, 4)).sqrt()


def to_unit(video: Tensor) -> Tensor:
    """-1..1 to 0..1, in float32, with what lies outside cut off as it is when a video is stored."""
    return (video.float().clamp(-1, 1) + 1) / 2


def frames(video: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)
