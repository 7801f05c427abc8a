"""What the VAE learns from: its losses, the discriminator's part in them, and ranks that share a video."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.ranks import on_ranks
from training.data.loader import Batch
from training.data.settings import Bucket
from training.distributed import World, find_world, joined
from training.loop import Trainer
from training.settings import OptimiserSettings, Training
from training.vae.config import VAEConfig
from training.vae.model import VAE
from training.vae.settings import AdversarialSettings, LossSettings
from training.vae.task import DISCRIMINATOR, MODEL, VAETask

_TINY = VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4)
_ADVERSARIAL = AdversarialSettings(weight=0.5, start=3, width=8, depth=2)
_STILL = OptimiserSettings(learning_rate=1e-3, warmup_steps=0, schedule="constant")


def _batch(number: int, *, size: int = 2, frames: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(number)
    video = torch.randint(256, (size, 3, frames, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(
        video=video,
        captions=[""] * size,
        keys=[f"{number}-{i}" for i in range(size)],
        rows=[{}] * size,
        times_s=np.zeros((size, frames)),
        crops=[],
        bucket=Bucket(frames=frames, height=16, width=16),
        is_image=frames == 1,
        epoch=0,
        index=number,
    )


def _task(loss: LossSettings, *, world: World | None = None, dtype: torch.dtype = torch.float32) -> VAETask:
    torch.manual_seed(0)
    vae = VAE(_TINY).to(dtype)
    return VAETask(vae, loss, _STILL, world=world or World(), held_out=[_batch(99), _batch(98, frames=1)])


def _gradients(task: VAETask, *, step: int, batch: Batch | None = None) -> dict[str, Tensor]:
    module = task.roles[MODEL].module
    module.zero_grad()
    loss = task.loss(MODEL, batch or _batch(0), index=0, step=step, rng=torch.Generator().manual_seed(7))
    loss.value.backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def _apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
@pytest.mark.parametrize("frames", [1, 9])
def test_the_gradient_is_that_of_the_loss_written_down(reconstruction: Any, frames: int) -> None:
    task = _task(LossSettings(reconstruction=reconstruction, kl=1e-3), dtype=torch.float64)
    vae, batch = task.roles[MODEL].module, _batch(0, frames=frames)
    ours = _gradients(task, step=0, batch=batch)
    vae.zero_grad()
    video = batch.video.double() / 127.5 - 1
    shape = (2, 4, (frames - 1) // 4 + 1, 2, 2)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    made, posterior = vae(video, noise=noise)
    difference = made - video
    loss = difference.abs().mean() if reconstruction == "l1" else difference.square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar).sum()
    (loss + 1e-3 * kl / video.numel()).backward()
    theirs = {name: weight.grad.clone() for name, weight in vae.named_parameters() if weight.grad is not None}
    assert _apart(ours, theirs) < 1e-10 * max(float(gradient.abs().max()) for gradient in theirs.values())


def test_the_divergence_is_not_rounded_as_products_are() -> None:
    task, found = _task(LossSettings(kl=1.0)), {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rng = torch.Generator().manual_seed(7)
            found[enabled] = task.loss(MODEL, _batch(0), index=0, step=0, rng=rng).figures["kl"].detach()
    assert found[True].dtype == torch.float32
    assert float(found[True]) == pytest.approx(float(found[False]), rel=0.02)


def test_the_discriminator_teaches_nothing_before_its_start_and_something_after() -> None:
    alone, with_it = (LossSettings(adversarial=a) for a in (AdversarialSettings(), _ADVERSARIAL))
    for step, teaches in ((0, False), (2, False), (3, True), (100, True)):
        apart = _apart(_gradients(_task(alone), step=step), _gradients(_task(with_it), step=step))
        assert (apart > 0) == teaches, step
        assert _task(with_it).active(step) == ((MODEL, DISCRIMINATOR) if teaches else (MODEL,))


def test_the_adversarial_gradient_has_the_length_it_is_given() -> None:
    lengths = {}
    for weight in (1e-9, 0.5, 2.0):
        task = _task(LossSettings(kl=0.0, adversarial=dataclasses.replace(_ADVERSARIAL, weight=weight, frames=9)))
        made = torch.randn(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(1))
        original = torch.zeros_like(made)
        gradient, _ = task._gradient(made, original, 1.0, torch.Generator().manual_seed(0), plays=True)
        lengths[weight] = gradient
    plain = lengths[1e-9].flatten(1).norm(dim=1)
    for weight in (0.5, 2.0):
        pull = (lengths[weight] - lengths[1e-9]).flatten(1).norm(dim=1)
        assert pull.tolist() == pytest.approx((weight * plain).tolist(), rel=1e-3)


def test_one_sample_changes_nothing_that_another_learns() -> None:
    """Not even by the weight of the adversarial loss, which is found for each sample."""
    task = _task(LossSettings(kl=0.0, adversarial=dataclasses.replace(_ADVERSARIAL, frames=9)))
    made = torch.randn(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(1))
    other = made.clone()
    other[1] *= 100
    gradients = [
        task._gradient(each, torch.zeros_like(each), 1.0, torch.Generator().manual_seed(0), plays=True)[0][0]
        for each in (made, other)
    ]
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_and_the_generator_does_not_move_it() -> None:
    task = _task(LossSettings(adversarial=_ADVERSARIAL))
    discriminator = task.roles[DISCRIMINATOR].module
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    losses = []
    for step in range(3, 43):
        _gradients(task, step=step)
        assert all(weight.grad is None for weight in discriminator.parameters())
        loss = task.loss(DISCRIMINATOR, _batch(0), index=0, step=step, rng=torch.Generator().manual_seed(7))
        loss.value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.value.item())
    assert losses[0] > 0.9
    assert losses[-1] < 0.3


@pytest.mark.slow
def test_the_penalty_holds_the_discriminator_back() -> None:
    lengths = []
    for penalty in (0.0, 10.0):
        task = _task(LossSettings(adversarial=dataclasses.replace(_ADVERSARIAL, penalty=penalty)))
        discriminator = task.roles[DISCRIMINATOR].module
        optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
        for step in range(3, 23):
            _gradients(task, step=step)
            loss = task.loss(DISCRIMINATOR, _batch(0), index=0, step=step, rng=torch.Generator().manual_seed(7))
            loss.value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        real = (_batch(0).video.float() / 127.5 - 1).requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(real).sum(), real)
        lengths.append(float(gradient.square().sum()))
    assert lengths[1] < lengths[0] / 2


def test_images_and_videos_are_judged_apart_and_drawn(tmp_path: Path) -> None:
    task = _task(LossSettings())
    with torch.no_grad():
        figures = task.judge(5, tmp_path / "samples")
    assert set(figures) == {"images_psnr", "images_ssim", "videos_flicker", "videos_psnr", "videos_ssim"}
    assert 0 < figures["videos_psnr"] < 30
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.jpg", "step-00000005.mp4"]


def _judge(folder: Path, context_parallel: int) -> dict[str, float]:
    """What is said of two videos held out, in float64."""
    with joined():
        world = find_world(context_parallel=context_parallel)
        task = _task(LossSettings(), world=world, dtype=torch.float64)
        task._held_out = [_batch(98), _batch(99, frames=13)]
        with torch.no_grad():
            return task.judge(0, folder)


@pytest.mark.slow
def test_ranks_that_share_videos_judge_as_one(tmp_path: Path) -> None:
    alone = _judge(tmp_path, 1)
    assert on_ranks(2, _judge, tmp_path, 2) == [pytest.approx(alone, abs=1e-10)] * 2
    assert on_ranks(2, _passed, tmp_path, 2) == [(5, 5), (4, 8)]


def _passed(folder: Path, context_parallel: int) -> tuple[int, ...]:
    """The frames of each video held out that this rank passes through the model."""
    with joined():
        world = find_world(context_parallel=context_parallel)
        task = _task(LossSettings(), world=world)
        task._held_out = [_batch(98), _batch(99, frames=13)]
        seen: list[int] = []
        task.roles[MODEL].module.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[2]))
        with torch.no_grad():
            task.judge(0, folder)
        return tuple(seen)


class _Batches:
    """Batches for ever, of which a rank along ``data`` reads its own."""

    num_bad = 0

    def __init__(self, world: World) -> None:
        self._world = world

    def __iter__(self) -> Iterator[Batch]:
        for number in itertools.count(self._world.data_rank, self._world.data_size):
            yield _batch(number)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing was stored")


def _learn(folder: Path, context_parallel: int, per_step: int) -> dict[str, Tensor]:
    """The weights after three steps, in float64."""
    with joined():
        world = find_world(context_parallel=context_parallel)
        task = _task(LossSettings(kl=1e-3), world=world, dtype=torch.float64)
        training = Training(
            steps=3,
            accumulate=per_step // world.data_size,
            precision="fp32",
            ema=None,
            judge_every=100,
            checkpoint_every=100,
            context_parallel=context_parallel,
        )
        task._held_out = []
        optimiser = OptimiserSettings(learning_rate=1e-2, warmup_steps=0, schedule="constant", eps=1e-3)
        task.roles = {MODEL: dataclasses.replace(task.roles[MODEL], optimiser=optimiser)}
        Trainer(task, _Batches(world), training, folder=folder, world=world, say=lambda text: None).train()
    from safetensors.torch import load_file

    return load_file(folder / "weights" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "context_parallel"), [(2, 2), (2, 1)], ids=["shared videos", "own videos"])
def test_two_ranks_learn_what_one_learns(ranks: int, context_parallel: int, tmp_path: Path) -> None:
    alone = _learn(tmp_path / "one", 1, 2)
    on_ranks(ranks, _learn, tmp_path / "two", context_parallel, 2)
    from safetensors.torch import load_file

    together = load_file(tmp_path / "two" / "weights" / "diffusion_pytorch_model.safetensors")
    torch.manual_seed(0)
    begun = dict(VAE(_TINY).double().state_dict())
    assert _apart(alone, begun) > 1e-3  # something was learnt
    assert _apart(alone, together) < 1e-10
