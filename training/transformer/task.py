"""How the transformer learns: what the training loop asks of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.distributed import World
from training.pictures import contact_sheet, to_frames, write_picture, write_video
from training.settings import OptimiserSettings
from training.task import Loss, Role, Task
from training.transformer.batches import LatentBatch, Loaded
from training.transformer.conditions import draw_mask
from training.transformer.diffusion import Diffusion, losses, timesteps
from training.transformer.lora import LoraLinear, add_lora, merged, write_lora
from training.transformer.model import Transformer, blocks
from training.transformer.parallel import context_parallel
from training.transformer.patches import fill_front
from training.transformer.pipeline import Parts, write_pipeline
from training.transformer.sampling import Draws, Sampling, decode, denoise, scaled, scaled_image
from training.transformer.settings import ConditionSettings, JudgeSettings
from training.vae.config import Chunks, Tiles, VAEConfig
from training.vae.model import VAE

MODEL = "transformer"


@dataclass(frozen=True)
class Drawn:
    """A sample as the transformer reads it: scaled, and everything drawn.

    Attributes:
        latents: (T, C, H, W), without noise, with frames in front where patches need them.
        noise: in its shape.
        text: (L, D).
        clean: bool (T,): frames that are given.
        image: (T, C, H, W): the first frame and zeros, for image-to-video.
    """

    latents: Tensor
    noise: Tensor
    text: Tensor
    clean: Tensor
    image: Tensor | None


class TransformerTask(Task):
    """The transformer's loss, its judge, and how it is written.

    The loss is the mean over samples of each one's mean squared error of v, whatever their sizes: an image teaches as
    much as a clip does. All that is drawn for a sample depends on the seed, the step and its place in the step: its
    company in a pack, the rank and the device change nothing.

    Args:
        diffusion: the noise.
        vae: draws samples where it is given, in ``chunks`` and ``tiles`` as it encoded.
        parts: what the transformer is written with.
        seed: of the training.
        held_out: samples to judge by, the same on all ranks.
        scales: of the transformer's LoRA additions, where it has some and only they learn.
    """

    def __init__(
        self,
        transformer: Transformer,
        optimiser: OptimiserSettings,
        *,
        diffusion: Diffusion,
        vae_config: VAEConfig,
        world: World,
        seed: int,
        conditions: ConditionSettings | None = None,
        judge: JudgeSettings | None = None,
        held_out: Sequence[Loaded] = (),
        vae: VAE | None = None,
        chunks: Chunks | None = None,
        tiles: Tiles | None = None,
        parts: Parts | None = None,
        scales: Mapping[str, float] | None = None,
        tokens: int | None = None,
    ) -> None:
        self._transformer, self._diffusion, self._vae_config, self._vae = transformer, diffusion, vae_config, vae
        self._world, self._seed, self._parts, self._scales = world, seed, parts, scales
        self._conditions, self._judge = conditions or ConditionSettings(), judge or JudgeSettings()
        self._held_out = held_out
        self._chunks, self._tiles = chunks, tiles
        self._flops: dict[tuple[int, ...], float] = {}  # of a sample, by its shape
        self._tokens = tokens or transformer.config.max_text_seq_length
        self.roles = {MODEL: Role(transformer, optimiser)}
        self.config = {
            "model": asdict(transformer.config),
            "diffusion": asdict(diffusion),
            "scaling_factor": vae_config.scaling_factor,
            "lora": dict(scales) if scales else None,
        }

    def count(self, batch: LatentBatch) -> int:
        """Samples."""
        return len(batch.keys)

    def frames(self, batch: LatentBatch) -> int:
        return sum((sample.mean.shape[1] - 1) * self._vae_config.time_ratio + 1 for sample in batch.samples)

    def shard(self, module: nn.Module) -> Sequence[nn.Module]:
        return blocks(self._transformer)

    def loss(self, role: str, batch: LatentBatch, *, index: int, step: int, rng: torch.Generator) -> Loss:
        ready = [self.draw(loaded, step, place) for loaded, place in zip(batch.samples, batch.indices, strict=True)]
        total = self._diffusion.num_train_timesteps
        t = timesteps(seed=self._seed, step=step, total=batch.total, indices=batch.indices, num_train_timesteps=total)
        group = self._world.context
        with context_parallel(self._transformer, group) if group else contextlib.nullcontext():
            value = self.errors(ready, t.to(self._world.device), packed=batch.packed).mean()
        # Ranks that share samples all have the whole loss, and the gradients that go through their own tokens.
        return Loss(value, {"loss": value.detach() / (group.size() if group else 1)})

    def flops(self, batch: LatentBatch) -> float:
        ranks = self._world.context.size() if self._world.context else 1
        return sum(self._flops_of(tuple(sample.mean.shape[1:])) for sample in batch.samples) / ranks

    def _flops_of(self, shape: tuple[int, ...]) -> float:
        """Operations for one sample; in a pack they are no others."""
        if shape not in self._flops:
            config = self._transformer.config
            frames = shape[0] + -shape[0] % config.time_patch
            with torch.device("meta"):  # where nothing is computed
                latents = torch.empty(1, frames, config.in_channels, *shape[1:])
                text, t = torch.empty(1, self._tokens, config.text_embed_dim), torch.zeros(1, dtype=torch.int64)
                model = Transformer(config)
                if self._scales:  # frozen weights have no gradients to compute
                    layer = self._transformer.get_submodule(next(iter(self._scales)))
                    assert isinstance(layer, LoraLinear)
                    add_lora(model, rank=layer.lora_A.out_features, targets=list(self._scales))
                with FlopCounterMode(display=False) as counter:
                    torch.autograd.backward(model(latents, text, t).sum())
            self._flops[shape] = float(counter.get_total_flops())
        return self._flops[shape]

    def errors(self, ready: Sequence[Drawn], t: Tensor, *, packed: bool) -> Tensor:
        """The loss of each sample at its timestep: (B,)."""
        noisy, targets = [], []
        for one, each in zip(ready, t[:, None], strict=True):
            x = self._diffusion.noised(one.latents[None], one.noise[None], each, clean=one.clean[None])[0]
            noisy.append(x if one.image is None else torch.cat([x, one.image], dim=1))
            targets.append(self._diffusion.velocity(one.latents[None], one.noise[None], each)[0])
        texts = [one.text for one in ready]
        # What is given to none is left out: it would cost a row of the time embedding.
        clean = [one.clean for one in ready] if any(one.clean.any() for one in ready) else None
        if packed:
            return losses(self._transformer(noisy, texts, t, clean=clean), targets, clean=clean)
        mask = None if clean is None else torch.stack(clean)
        out = self._transformer(torch.stack(noisy), torch.stack(texts), t, clean=mask)
        return losses(out, torch.stack(targets), clean=mask)

    def draw(self, loaded: Loaded, step: int, place: int) -> Drawn:
        """Draw everything but the timestep for the sample at ``place`` of a step."""
        rng = self._rng("train", step, place)
        conditions = self._conditions
        # In this order and always, so that settings do not change each other's draws.
        chances = torch.rand(64, generator=rng, dtype=torch.float64).tolist()
        drop_caption = chances[0] < conditions.drop_caption
        drop_image = chances[1] < conditions.drop_image
        return self._ready(loaded, rng, drop_caption=drop_caption, drop_image=drop_image, chances=chances[2:])

    def _ready(
        self, loaded: Loaded, rng: torch.Generator, *, drop_caption: bool, drop_image: bool, chances: list[float]
    ) -> Drawn:
        config = self._transformer.config
        latents = scaled(self._drawn(loaded.mean, loaded.std, rng)[None], self._vae_config)
        latents, _ = fill_front(config, latents)
        frames = latents.shape[1]
        given = draw_mask(self._conditions.frames, frames // config.time_patch, _Chances(chances)) if chances else None
        clean = torch.zeros(frames, dtype=torch.bool)
        if given is not None:
            clean = given.repeat_interleave(config.time_patch)
        image = None
        if config.reads_image:
            assert loaded.image is not None, "samples of image-to-video have their first frame's latent"
            first = scaled_image(self._drawn(*loaded.image, rng)[None], self._vae_config)[0]
            image = torch.cat([first, first.new_zeros(frames - 1, *first.shape[1:])])
            image = torch.zeros_like(image) if drop_image else image
        noise = torch.randn(latents[0].shape, generator=rng)
        text = loaded.text
        if text is None or drop_caption:
            text = torch.zeros(self._tokens, config.text_embed_dim)
        return Drawn(
            latents=self._to(latents[0]),
            noise=self._to(noise),
            text=self._to(text),
            clean=clean.to(self._world.device),
            image=None if image is None else self._to(image),
        )

    def _drawn(self, mean: Tensor, std: Tensor, rng: torch.Generator) -> Tensor:
        """A latent (C, T, H, W) of a posterior."""
        return mean.float() + std.float() * torch.randn(mean.shape, generator=rng)

    def _to(self, x: Tensor) -> Tensor:
        weight = next(self._transformer.parameters())
        return x.to(self._world.device, torch.promote_types(weight.dtype, torch.float32), non_blocking=True)

    def _rng(self, *parts: Any) -> torch.Generator:
        named = json.dumps([self._seed, *parts]).encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(named, digest_size=7).digest(), "big"))

    def judge(self, step: int, folder: Path) -> dict[str, float]:
        """The loss on samples held out, over a grid of timesteps with the same noise every time; and of each timestep.

        Nothing is dropped and no frames are given, so that figures of any two trainings on the same latents compare.
        """
        count, ranks = self._judge.timesteps, self._world.data_size
        total = self._diffusion.num_train_timesteps
        grid = [int((i + 0.5) * total / count) for i in range(count)]
        sums = [0.0] * count
        # All ranks run the model equally often, since they may hold it together: those without a sample run another's.
        for start in range(0, len(self._held_out), ranks):
            at = start + self._world.data_rank
            loaded = self._held_out[min(at, len(self._held_out) - 1)]
            for i, t in enumerate(grid):
                rng = self._rng("judge", min(at, len(self._held_out) - 1), t)
                ready = self._ready(loaded, rng, drop_caption=False, drop_image=False, chances=[])
                error = self.errors([ready], torch.tensor([t], device=self._world.device), packed=False)
                sums[i] += float(error) if at < len(self._held_out) else 0.0
        if not self._held_out:
            return {}
        totals = [value / len(self._held_out) for value in self._world.total(*sums)]
        self._draw(step, folder)
        return {"loss": sum(totals) / count, **{f"loss_t{t:03d}": value for t, value in zip(grid, totals, strict=True)}}

    def _draw(self, step: int, folder: Path) -> None:
        """A few videos of captions held out. All ranks make them together, the first writes them."""
        shown = [one for one in self._held_out if one.mean.shape[1] > 1] or list(self._held_out)
        shown = [one for one in shown if one.mean.shape == shown[0].mean.shape][: self._judge.shown]
        if self._vae is None or not shown:
            return
        reads_image = self._transformer.config.reads_image
        settings = Sampling(steps=self._judge.steps, solver="ddim", guidance=self._judge.guidance)
        rows, names = [], []
        for number, one in enumerate(shown):
            ready = self._ready(one, self._rng("shown", number), drop_caption=False, drop_image=False, chances=[])
            latents = denoise(
                self._transformer,
                ready.text[None],
                shape=(one.mean.shape[1], one.mean.shape[2], one.mean.shape[3]),
                diffusion=self._diffusion,
                draws=Draws([number]),
                settings=settings,
                first=ready.image[None, :1] if reads_image and ready.image is not None else None,
                device=self._world.device,
            )
            if self._world.is_first:
                video = decode(self._vae, latents, chunks=self._chunks, tiles=self._tiles)
                rows.append(to_frames(video[0]))
                names.append(one.caption)
        if self._world.is_first:
            _write(folder / f"step-{step:08d}", rows, names)
        self._world.wait()  # decoding may take longer than a rank waits for others in a step

    def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """A whole pipeline, with additions merged into the weights; the additions by themselves beside it."""
        if self._scales:
            write_lora(folder / "lora", state=weights, scales=self._scales)
            weights = merged(weights, self._scales)
        if self._parts is None:
            self._transformer.save_pretrained(folder / "transformer", state=weights)
        else:
            write_pipeline(folder, config=self._transformer.config, state=weights, parts=self._parts)


class _Chances:
    """Numbers drawn before, one after the other, round and round."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers, self._next = numbers, 0

    def __call__(self) -> float:
        self._next += 1
        return self._numbers[(self._next - 1) % len(self._numbers)]


def _write(name: Path, rows: Sequence[Any], captions: Sequence[str]) -> None:
    """The videos one below the other, a contact sheet of them, and their captions."""
    name.parent.mkdir(parents=True, exist_ok=True)
    write_picture(name.with_suffix(".jpg"), contact_sheet(rows))
    write_video(name.with_suffix(".mp4"), np.concatenate(rows, axis=1), fps=8)
    name.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
