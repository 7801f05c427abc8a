"""What the transformer learns from: packs, given frames, dropped captions, the judge, and ranks that share a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.training.ranks import on_ranks
from tests.training.transformer_helpers import gradients, noise, tiny
from tests.training.transformer_made import TINY_VAE
from training.distributed import World, find_world, joined
from training.loop import Trainer
from training.settings import OptimiserSettings, Training
from training.transformer.batches import LatentBatch, Loaded
from training.transformer.conditions import MASKS, draw_mask, mask
from training.transformer.diffusion import Diffusion
from training.transformer.lora import add_lora
from training.transformer.settings import ConditionSettings, JudgeSettings
from training.transformer.task import MODEL, TransformerTask

_STILL = OptimiserSettings(learning_rate=1e-3, warmup_steps=0, schedule="constant")
_SHAPES = [(3, 4, 6), (1, 4, 4), (5, 2, 6)]  # (T, H, W): two clips and an image


def _loaded(number: int, shape: tuple[int, int, int] | None = None, *, image: bool = False) -> Loaded:
    shape = shape or _SHAPES[number % 3]
    first = (noise(4, 1, *shape[1:], seed=number + 500), torch.full((4, 1, *shape[1:]), 0.1)) if image else None
    std = torch.full((4, *shape), 0.3)
    return Loaded(noise(4, *shape, seed=number), std, noise(5, 12, seed=100 + number), first, f"film {number}")


def _batch(numbers: range, *, of: int, packed: bool = True, **more: Any) -> LatentBatch:
    """Samples whose places in the step, of ``of`` samples, are their numbers."""
    loaded = [_loaded(number, **more) for number in numbers]
    return LatentBatch([str(n) for n in numbers], loaded, [n % of for n in numbers], of, packed)


def _task(kind: str = "5b", *, dtype: torch.dtype = torch.float64, **more: Any) -> TransformerTask:
    settings: dict[str, Any] = {"world": World(), "seed": 3, "judge": JudgeSettings(timesteps=4, shown=0), **more}
    return TransformerTask(
        tiny(kind, dtype=dtype), _STILL, diffusion=Diffusion(snr_shift_scale=1.0), vae_config=TINY_VAE, **settings
    )


def _learn(task: TransformerTask, batch: LatentBatch, *, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    loss = task.loss(MODEL, batch, index=0, step=step, rng=torch.Generator())
    loss.value.backward()  # type: ignore[no-untyped-call]
    return loss.value.detach(), gradients(task.roles[MODEL].module)


_GIVEN = ConditionSettings(drop_caption=0.3, frames={"first": 0.5, "random": 0.5})


@pytest.mark.parametrize("conditions", [ConditionSettings(), _GIVEN], ids=["plain", "frames given"])
def test_a_pack_teaches_what_its_samples_teach_alone(conditions: ConditionSettings) -> None:
    task = _task(conditions=conditions)
    value, together = _learn(task, _batch(range(3), of=3))
    alone = [_learn(task, _batch(range(i, i + 1), of=3)) for i in range(3)]
    assert abs(value - sum(each for each, _ in alone) / 3) < 1e-10
    for name, gradient in together.items():
        apart = torch.stack([found[name] for _, found in alone]).mean(0)
        assert float((gradient - apart).abs().max()) < 1e-10, name


def test_a_batch_of_one_shape_teaches_what_the_same_pack_does() -> None:
    task = _task(conditions=_GIVEN)
    results = [_learn(task, _batch(range(4), of=4, packed=packed, shape=(3, 4, 6))) for packed in (True, False)]
    assert abs(results[0][0] - results[1][0]) < 1e-10
    for name, gradient in results[0][1].items():
        assert float((gradient - results[1][1][name]).abs().max()) < 1e-10, name


def test_given_frames_have_no_noise_and_no_loss_and_all_others_do() -> None:
    task = _task(conditions=ConditionSettings(frames={"first_last": 1.0}))
    ready = task.draw(_loaded(2), 0, 0)
    assert ready.clean.tolist() == [True, False, False, False, True]
    seen: list[Tensor] = []
    model = task.roles[MODEL].module
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    t = torch.tensor([900])
    base = task.errors([ready], t, packed=True)
    assert torch.equal(seen[0][ready.clean], ready.latents[ready.clean])
    assert float((seen[0] - ready.latents)[~ready.clean].abs().mean()) > 0.5
    handle.remove()
    # The loss is over frames that are not given: their noise alone is in the target.
    other = dataclasses.replace(ready, noise=torch.where(ready.clean[:, None, None, None], 7.0, ready.noise))
    assert torch.equal(base, task.errors([other], t, packed=True))


def test_captions_are_dropped_to_zeros_as_often_as_asked() -> None:
    task = _task(conditions=ConditionSettings(drop_caption=0.25))
    dropped = [bool((task.draw(_loaded(1), step, 0).text == 0).all()) for step in range(400)]
    assert 0.18 < sum(dropped) / 400 < 0.32
    without = dataclasses.replace(_loaded(1), text=None)
    assert float(task.draw(without, 0, 0).text.abs().max()) == 0.0


def test_image_to_video_has_the_first_frame_and_zeros_after_it() -> None:
    task = _task("5b_i2v", conditions=ConditionSettings(drop_image=0.5))
    shown = 0
    for step in range(60):
        image = task.draw(_loaded(0, (3, 8, 12), image=True), step, 0).image
        assert image is not None
        assert image.shape == (3, 4, 8, 12)
        assert float(image[1:].abs().max()) == 0.0
        shown += bool(image[0].abs().max() > 0)
    assert 15 < shown < 45
    value, _ = _learn(task, _batch(range(2), of=2, shape=(3, 8, 12), image=True))
    assert torch.isfinite(value)


def test_what_is_drawn_depends_on_seed_step_and_place_alone() -> None:
    task = _task()
    first = task.draw(_loaded(0), 4, 2)
    assert torch.equal(first.noise, task.draw(_loaded(0), 4, 2).noise)
    for step, place in ((4, 3), (5, 2)):
        other = task.draw(_loaded(0), step, place)
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.latents, other.latents)  # another draw of the posterior
    assert not torch.equal(first.noise, _task(seed=4).draw(_loaded(0), 4, 2).noise)


def test_latents_are_scaled_once() -> None:
    task = _task()
    still = dataclasses.replace(_loaded(0), std=torch.zeros(4, 3, 4, 6))
    expected = still.mean.transpose(0, 1).double() * TINY_VAE.scaling_factor
    assert float((task.draw(still, 0, 0).latents - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("rank", [None, 2], ids=["all weights", "additions alone"])
def test_operations_are_those_of_what_learns(rank: int | None) -> None:
    transformer = tiny()
    scales = None if rank is None else add_lora(transformer, rank=rank, targets=("to_q", "to_out.0"))
    task = TransformerTask(
        transformer, _STILL, diffusion=Diffusion(), vae_config=TINY_VAE, world=World(), seed=0, scales=scales
    )
    found = task.flops(_batch(range(1), of=1, shape=(3, 4, 6)))
    transformer.to("meta")  # attention on a CPU is a kernel that is not counted
    latents, text, t = noise(1, 3, 4, 4, 6).to("meta"), noise(1, 5, 12).to("meta"), torch.tensor([5], device="meta")
    with FlopCounterMode(display=False) as counter:
        transformer(latents, text, t).sum().backward()
    assert found == counter.get_total_flops()


def test_the_judge_is_the_same_every_time_and_its_loss_the_mean_of_its_timesteps(tmp_path: Path) -> None:
    held_out = [_loaded(i) for i in range(5)]
    task = _task(held_out=held_out, dtype=torch.float32, conditions=_GIVEN)
    with torch.no_grad():
        first, second = (task.judge(step, tmp_path) for step in (1, 2))
        alone = [_task(held_out=held_out[i : i + 1], dtype=torch.float32).judge(1, tmp_path)["loss"] for i in range(1)]
    assert first == second
    assert set(first) == {"loss", "loss_t125", "loss_t375", "loss_t625", "loss_t875"}
    assert first["loss"] == pytest.approx(sum(first[f"loss_t{t}"] for t in (125, 375, 625, 875)) / 4)
    assert alone[0] != first["loss"]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("frames", [2, 3, 4, 13])
def test_every_mask_gives_some_frames_and_leaves_some(name: str, frames: int) -> None:
    numbers = iter(torch.rand(1000, generator=torch.Generator().manual_seed(0)).tolist())
    found = torch.stack([mask(name, frames, lambda: next(numbers)) for _ in range(20)])
    assert not found.all(1).any()
    assert found.any()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("first", [0]),
        ("last", [12]),
        ("first_last", [0, 12]),
        ("quarter_first", [0, 1, 2]),
        ("quarter_last", [10, 11, 12]),
        ("quarter_first_last", [0, 1, 2, 10, 11, 12]),
        ("quarter_random", [5, 6, 7]),
        ("every_other", [0, 2, 4, 6, 8, 10, 12]),
    ],
)
def test_masks_of_thirteen_frames(name: str, given: list[int]) -> None:
    assert mask(name, 13, lambda: 0.5).nonzero()[:, 0].tolist() == given


def test_masks_are_drawn_by_their_shares_and_never_for_images() -> None:
    numbers = iter(torch.rand(9000, generator=torch.Generator().manual_seed(0)).tolist())
    drawn = [draw_mask({"first": 0.2, "last": 0.1}, 5, lambda: next(numbers)) for _ in range(2000)]
    first = sum(bool(each is not None and each[0]) for each in drawn)
    last = sum(bool(each is not None and each[4]) for each in drawn)
    assert 0.17 < first / 2000 < 0.23
    assert 0.08 < last / 2000 < 0.12
    assert draw_mask({"first": 1.0}, 1, lambda: 0.0) is None


class _Packs:
    """Packs of unlike sizes for ever, four in a step; a rank along ``data`` reads its own."""

    _SIZES = (3, 1, 2, 2)
    num_bad = 0

    def __init__(self, world: World) -> None:
        self._world = world

    def __iter__(self) -> Iterator[LatentBatch]:
        for step in range(10**6):
            for at in range(self._world.data_rank, 4, self._world.data_size):
                start = 8 * step + sum(self._SIZES[:at])
                yield _batch(range(start, start + self._SIZES[at]), of=8)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing was stored")


def _train(folder: Path, context_parallel: int) -> dict[str, Tensor]:
    """The weights after three steps, in float64."""
    with joined():
        world = find_world(context_parallel=context_parallel)
        task = _task(world=world, conditions=_GIVEN)
        training = Training(
            steps=3,
            accumulate=4 // world.data_size,
            precision="fp32",
            ema=None,
            judge_every=100,
            checkpoint_every=100,
            context_parallel=context_parallel,
        )
        optimiser = OptimiserSettings(learning_rate=1e-2, warmup_steps=0, schedule="constant", eps=1e-3)
        task.roles = {MODEL: dataclasses.replace(task.roles[MODEL], optimiser=optimiser)}
        Trainer(task, _Packs(world), training, folder=folder, world=world, say=lambda text: None).train()
    return load_file(folder / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("context_parallel", [1, 2], ids=["own packs", "shared packs"])
def test_two_ranks_learn_what_one_learns(context_parallel: int, tmp_path: Path) -> None:
    alone = _train(tmp_path / "one", 1)
    on_ranks(2, _train, tmp_path / "two", context_parallel)
    together = load_file(tmp_path / "two" / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
    begun = dict(tiny(dtype=torch.float64).state_dict())
    assert max(float((alone[name] - begun[name]).abs().max()) for name in alone) > 1e-3  # something was learnt
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-10
