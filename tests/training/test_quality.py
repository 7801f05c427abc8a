"""Figures of a reconstruction, on pictures whose figures are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curation.errors import UsageError
from curation.torchvision import mend
from training.perceptual import Perceptual, PerceptualSettings
from training.quality import flicker, psnr, ssim

_GREY = torch.zeros(2, 3, 5, 32, 32)


def test_an_error_of_a_tenth_of_white_is_20_db() -> None:
    assert psnr(_GREY + 0.2, _GREY).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_equal_videos_have_a_number_and_no_infinity() -> None:
    assert psnr(_GREY, _GREY).tolist() == [100.0, 100.0]


def test_psnr_is_a_mean_over_frames_and_samples_stay_apart() -> None:
    video = _GREY.clone()
    video[0, :, 0] += 0.2
    video[1] += 0.02
    assert psnr(video, _GREY).tolist() == pytest.approx([(20 + 4 * 100) / 5, 40.0], abs=1e-3)


def test_what_lies_beyond_white_is_cut_off_as_in_a_stored_video() -> None:
    white = torch.ones(1, 3, 1, 16, 16)
    assert psnr(white + 5, white).item() == 100.0


def test_ssim_is_1_of_equal_pictures_and_0_of_noise_and_unknown_of_tiny_ones() -> None:
    noise = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert ssim(noise, noise).tolist() == pytest.approx([1.0, 1.0])
    assert max(ssim(noise, other).abs().tolist()) < 0.05
    flat = 0.02 * noise + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ssim(flat, flat + 0.001 * other)
    assert mixed.tolist() == pytest.approx(ssim(flat, flat + 0.001 * other).tolist())
    assert math.isnan(ssim(noise[..., :8, :8], other[..., :8, :8])[0])


def test_a_standing_error_does_not_flicker_and_an_alternating_one_does() -> None:
    moving = torch.rand(1, 3, 5, 32, 32) - 0.5
    assert flicker(moving + 0.1, moving).item() == pytest.approx(0.0, abs=1e-6)
    sign = torch.tensor([1.0, -1, 1, -1, 1]).view(1, 1, 5, 1, 1)
    assert flicker(moving + 0.1 * sign, moving).item() == pytest.approx(0.1, abs=1e-5)  # 0.2 of -1..1 is 0.1 of white
    assert flicker(moving[:, :, :1] + 0.1, moving[:, :, :1]).item() == 0.0


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet as torchvision stores it, with random weights."""
    mend()
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "alexnet.safetensors"
    save_file(torchvision.models.alexnet(weights=None).state_dict(), path)
    return path


def test_the_perceptual_loss_is_that_of_lpips_with_the_trunk_of_the_file(trunk: Path) -> None:
    import lpips
    import torchvision
    from safetensors.torch import load_file

    ours = Perceptual(PerceptualSettings(weight=1.0, network="alex", trunk=str(trunk)))
    network = torchvision.models.alexnet(weights=None)
    network.load_state_dict(load_file(trunk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "alexnet", lambda **_: network)
        theirs = lpips.LPIPS(net="alex", verbose=False)
    video, other = (torch.rand(2, 3, 3, 64, 64) * 2 - 1 for _ in range(2))
    expected = [theirs(video[i].transpose(0, 1), other[i].transpose(0, 1)).mean().item() for i in range(2)]
    assert ours(video, other).tolist() == pytest.approx(expected, abs=1e-6)
    assert min(expected) > 1e-3
    assert ours(video, video).abs().max() < 1e-6


def test_the_perceptual_loss_learns_nothing_but_teaches(trunk: Path) -> None:
    ours = Perceptual(PerceptualSettings(weight=1.0, network="alex", trunk=str(trunk))).train()
    assert not ours.training
    video = (torch.rand(1, 3, 3, 64, 64) * 2 - 1).requires_grad_()
    ours(video, torch.zeros_like(video)).sum().backward()
    assert video.grad is not None
    assert video.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in ours.parameters())


def test_some_frames_stand_for_all(trunk: Path) -> None:
    settings = PerceptualSettings(weight=1.0, network="alex", trunk=str(trunk), frames=2)
    ours = Perceptual(settings)
    video = (torch.rand(1, 3, 5, 64, 64) * 2 - 1).requires_grad_()
    ours(video, torch.zeros_like(video), rng=torch.Generator().manual_seed(0)).sum().backward()
    assert video.grad is not None
    assert int((video.grad.abs().sum(dim=(0, 1, 3, 4)) > 0).sum()) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", "there is no file"),
        ("text.pth", "cannot be read as weights"),
        ("vgg.safetensors", "holds no weights"),
    ],
)
def test_a_trunk_that_is_none_is_said(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    save_file({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "vgg.safetensors")
    with pytest.raises(UsageError, match=message):
        Perceptual(PerceptualSettings(weight=1.0, network="alex", trunk=str(tmp_path / name)))


def test_weights_that_cannot_be_downloaded_are_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mend()
    import torch.hub

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(UsageError, match=r"weights of vgg are not on this machine.*perceptual.trunk.*weight` to 0"):
        Perceptual(PerceptualSettings(weight=1.0))
