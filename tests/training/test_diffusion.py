"""The diffusion against golden values, against diffusers' schedulers step by step, and by its own laws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curation.errors import UsageError
from curation.torchvision import mend
from tests.training.transformer_helpers import apart, noise
from training.transformer.diffusion import Diffusion, losses, timesteps
from training.transformer.solvers import DDIM, GUIDANCE, SOLVERS, guidance, solver

GOLDEN = {1.0: (0.99915, 0.652457, 0.241019, 0.032799, 0.0), 3.0: (0.997454, 0.389054, 0.095328, 0.010839, 0.0)}


@pytest.mark.parametrize("shift", GOLDEN, ids=["5b", "2b"])
def test_alphas_have_the_published_values(shift: float) -> None:
    alphas = Diffusion(snr_shift_scale=shift).alphas_cumprod
    assert alphas[[0, 250, 500, 750, 999]] == pytest.approx(GOLDEN[shift], abs=5e-7)
    assert alphas[999] == 0.0
    assert (np.diff(alphas) < 0).all()


def scheduler(name: str, shift: float) -> Any:
    mend()
    import diffusers

    cls = {"ddim": diffusers.CogVideoXDDIMScheduler, "dpm": diffusers.CogVideoXDPMScheduler}[name]
    return cls.from_config(json.loads(Diffusion(snr_shift_scale=shift).to_json()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 28, 50])
@pytest.mark.parametrize("name", SOLVERS)
def test_steps_equal_diffusers(name: str, steps: int, shift: float) -> None:
    other = scheduler(name, shift)
    assert np.allclose(other.alphas_cumprod.numpy(), Diffusion(snr_shift_scale=shift).alphas_cumprod, atol=1e-12)
    other.set_timesteps(steps)
    ours = solver(name, Diffusion(snr_shift_scale=shift), steps)
    assert ours.timesteps == other.timesteps.tolist()
    ours_draws, other_draws = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    x = y = noise(2, 3, 4, 5, 6)
    before = None
    for i, t in enumerate(other.timesteps):
        v = noise(*x.shape, seed=10 + i)
        x = ours.step(i, v, x, lambda: torch.randn(2, 3, 4, 5, 6, generator=ours_draws))
        if name == "ddim":
            y = other.step(v, t, y, return_dict=False)[0]
        else:
            back = other.timesteps[i - 1] if i else None
            y, before = other.step(v, before, t, back, y, generator=other_draws, return_dict=False)
        assert apart(x, y) < 1e-5, i
    assert torch.equal(ours_draws.get_state(), other_draws.get_state())


@pytest.mark.parametrize("name", SOLVERS)
def test_a_perfect_prediction_brings_back_the_latents(name: str) -> None:
    diffusion, latents = Diffusion(), noise(1, 2, 4, 3, 3, dtype=torch.float64)
    steps = solver(name, diffusion, 25)
    x = noise(*latents.shape, seed=2, dtype=torch.float64)  # pure noise: nothing of the latents is in it
    draws = torch.Generator().manual_seed(0)
    for i, t in enumerate(steps.timesteps):
        a = float(diffusion.alphas_cumprod[t])
        v = (math.sqrt(a) * x - latents) / math.sqrt(1 - a)
        x = steps.step(i, v, x, lambda: torch.randn(latents.shape, generator=draws, dtype=torch.float64))
    assert apart(x, latents) < 1e-9


def test_noised_latents_and_velocity_equal_diffusers_and_undo_each_other() -> None:
    latents, dirt, t = noise(3, 2, 4, 5, 5), noise(3, 2, 4, 5, 5, seed=2), torch.tensor([0, 500, 999])
    diffusion, other = Diffusion(), scheduler("dpm", 3.0)
    mixed, v = diffusion.noised(latents, dirt, t), diffusion.velocity(latents, dirt, t)
    assert apart(mixed, other.add_noise(latents, dirt, t)) < 1e-6
    assert apart(v, other.get_velocity(latents, dirt, t)) < 1e-6
    assert torch.equal(mixed[2], dirt[2])
    assert torch.equal(v[2], -latents[2])
    a = torch.tensor(diffusion.alphas_cumprod)[t].view(3, 1, 1, 1, 1).float()
    assert apart(a.sqrt() * mixed - (1 - a).sqrt() * v, latents) < 1e-5


def test_clean_frames_stay_as_they_are_and_bf16_is_noised_in_fp32() -> None:
    latents, dirt, t = noise(2, 2, 4, 5, 5), noise(2, 2, 4, 5, 5, seed=2), torch.tensor([700, 999])
    clean = torch.tensor([[True, False], [False, False]])
    mixed = Diffusion().noised(latents, dirt, t, clean=clean)
    assert torch.equal(mixed[0, 0], latents[0, 0])
    assert torch.equal(mixed[~clean], Diffusion().noised(latents, dirt, t)[~clean])
    assert Diffusion().noised(latents.bfloat16(), dirt.bfloat16(), t).dtype == torch.float32
    assert Diffusion().velocity(latents.double(), dirt.double(), t).dtype == torch.float64


def test_losses_are_fp32_means_over_the_frames_that_are_not_clean() -> None:
    prediction = torch.zeros(2, 3, 1, 2, 2)
    target = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 2, 2)
    clean = torch.tensor([[True, False, False], [True, True, True]])
    assert losses(prediction, target).tolist() == pytest.approx([14 / 3] * 2)
    assert losses(prediction, target, clean=clean).tolist() == pytest.approx([6.5, 0.0])
    pack = losses(list(prediction), list(target), clean=list(clean))
    assert pack.tolist() == pytest.approx([6.5, 0.0])
    assert losses(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_a_pack_of_unequal_samples_has_the_losses_of_each() -> None:
    predictions: list[Tensor] = [noise(3, 4, 8, 12), noise(1, 4, 2, 2)]
    targets = [noise(3, 4, 8, 12, seed=4), noise(1, 4, 2, 2, seed=5)]
    expected = [(p - v).square().mean().item() for p, v in zip(predictions, targets, strict=True)]
    assert losses(predictions, targets).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("total", [1, 7, 64, 1000, 3000])
def test_every_step_covers_all_timesteps_evenly(total: int) -> None:
    t = timesteps(seed=1, step=5, total=total, indices=range(total)).sort().values
    lowest = torch.arange(total) * 1000 // total
    highest = ((torch.arange(total) + 1) * 1000 / total).ceil() - 1
    assert ((t >= lowest) & (t <= highest)).all()


def test_timesteps_depend_on_seed_step_and_index_only() -> None:
    whole = timesteps(seed=1, step=5, total=12, indices=range(12))
    ranks = [timesteps(seed=1, step=5, total=12, indices=range(rank, 12, 3)) for rank in range(3)]
    assert torch.equal(torch.stack(ranks, 1).flatten(), whole)
    assert not torch.equal(whole, timesteps(seed=1, step=6, total=12, indices=range(12)))
    assert not torch.equal(whole, timesteps(seed=2, step=5, total=12, indices=range(12)))


def test_one_sample_meets_all_timesteps_over_the_steps() -> None:
    met = torch.cat([timesteps(seed=0, step=step, total=8, indices=[3]) for step in range(2000)])
    counts = torch.bincount(met // 100, minlength=10)
    assert len(counts) == 10
    assert counts.float().sub(200).abs().max() < 60  # more than four deviations


def test_dynamic_guidance_rises_from_one_to_one_more_than_the_scale() -> None:
    rises = [guidance("dynamic")(6.0, index=i, steps=50, t=0) for i in range(51)]
    assert rises[0] == 1.0
    assert rises[50] == pytest.approx(7.0)
    assert rises == sorted(rises)
    assert rises[40] == pytest.approx(1 + 6 * (1 - math.cos(math.pi * 0.8**5)) / 2)
    assert guidance("constant")(6.0, index=3, steps=50, t=0) == 6.0
    assert guidance("dynamic_diffusers")(6.0, index=3, steps=4, t=4) == 1.0
    assert set(GUIDANCE) == {"constant", "dynamic", "dynamic_diffusers"}


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} sampling steps"):
        DDIM(Diffusion(), steps)


def test_unknown_solvers_and_guidances_are_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'ddim'"):
        solver("ddimm", Diffusion(), 5)
    with pytest.raises(UsageError, match="Did you mean 'dynamic'"):
        guidance("dynamics")


def test_configurations_go_to_diffusers_and_come_back(tmp_path: Path) -> None:
    diffusion = Diffusion(snr_shift_scale=1.0)
    diffusion.save_pretrained(tmp_path / "scheduler")
    assert Diffusion.from_pretrained(tmp_path) == diffusion
    scheduler("dpm", 1.0).save_pretrained(tmp_path / "theirs")
    assert Diffusion.from_pretrained(tmp_path / "theirs") == diffusion


@pytest.mark.parametrize(("name", "value"), [("prediction_type", "epsilon"), ("rescale_betas_zero_snr", False)])
def test_other_diffusions_are_refused_with_the_file(name: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({name: value}))
    with pytest.raises(UsageError, match=f"{file} cannot be used: {name} {value!r}"):
        Diffusion.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(UsageError, match="3 for 2b, 1 for 5b"):
        Diffusion.from_pretrained(tmp_path)
