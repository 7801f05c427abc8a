"""How the VAE learns: what the training loop asks of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.data.loader import Batch
from training.distributed import World
from training.perceptual import Perceptual
from training.pictures import beside, contact_sheet, to_frames, write_picture, write_video
from training.quality import flicker, psnr, ssim
from training.settings import OptimiserSettings
from training.task import Loss, Role, Task
from training.vae.discriminator import Discriminator, fooling_loss, gradient_penalty, hinge_loss
from training.vae.gaussian import Gaussian
from training.vae.model import VAE, blocks
from training.vae.parallel import context_parallel, gather_frames, split_frames
from training.vae.settings import LossSettings

MODEL, DISCRIMINATOR = "vae", "discriminator"
_SHOWN = 4  # reconstructions that are drawn


class VAETask(Task):
    """The VAE as generator, and its discriminator where the loss has one.

    The loss is reconstruction + LPIPS + KL, and from ``adversarial.start`` on an adversarial gradient that is scaled,
    for each sample, to ``adversarial.weight`` lengths of the gradient of reconstruction and LPIPS, both taken at the
    reconstruction. (VQGAN, Esser et al. 2021, takes both at the decoder's last layer and for a whole batch: there one
    sample, or the number of ranks, would change what another one learns.)

    Where ranks share samples, each has a span of the frames, and the discriminator sees each span by itself. Judging
    works so, too.

    Args:
        held_out: batches to judge by, of this rank.
    """

    def __init__(
        self, vae: VAE, loss: LossSettings, optimiser: OptimiserSettings, *, world: World, held_out: Sequence[Batch]
    ) -> None:
        self._settings, self._world, self._held_out = loss, world, held_out
        self._vae = vae
        self._perceptual = Perceptual(loss.perceptual).to(world.device) if loss.perceptual.weight else None
        self.roles = {MODEL: Role(vae, optimiser)}
        self.config = {"model": asdict(vae.config)}
        if loss.adversarial.weight:
            like = loss.adversarial
            self._discriminator = Discriminator(width=like.width, depth=like.depth, time_depth=like.time_depth)
            self.roles[DISCRIMINATOR] = Role(self._discriminator, like.optimiser, averaged=False, sharded=False)
        self._flops: dict[torch.Size, float] = {}  # of a batch, by its shape
        self._pairs: list[tuple[Tensor, Tensor]] = []  # reconstruction and original, of each batch of this step

    def active(self, step: int) -> Sequence[str]:
        """The discriminator plays from its first step on."""
        return tuple(self.roles) if self._plays(step) else (MODEL,)

    def _plays(self, step: int) -> bool:
        return DISCRIMINATOR in self.roles and step >= self._settings.adversarial.start

    def count(self, batch: Batch) -> int:
        """Samples."""
        return len(batch.keys)

    def frames(self, batch: Batch) -> int:
        return batch.video.shape[0] * batch.video.shape[2]

    def flops(self, batch: Batch) -> float:
        shape = batch.video.shape
        if shape not in self._flops:
            with torch.device("meta"):  # where nothing is computed
                vae, video = VAE(self._vae.config), torch.empty(shape)
                with FlopCounterMode(display=False) as counter:
                    made, _ = vae(video)
                    made.sum().backward()
            self._flops[shape] = float(counter.get_total_flops())
        return self._flops[shape] / (self._world.context.size() if self._world.context else 1)

    def shard(self, module: nn.Module) -> Sequence[nn.Module]:
        return blocks(self._vae) if module is self._vae else []

    def loss(self, role: str, batch: Batch, *, index: int, step: int, rng: torch.Generator) -> Loss:
        if role == DISCRIMINATOR:
            return self._judging(*self._pairs[index], rng)
        if index == 0:
            self._pairs.clear()
        video = self._video(batch)
        span, latents = self._span(video.shape[2])
        original = video[:, :, span]
        shape = self._vae.latent_shape(*video.shape[2:])
        noise = torch.randn((len(video), *shape), generator=rng, device=rng.device, dtype=video.dtype)[:, :, latents]
        with context_parallel(self._vae, self._world.context) if self._world.context else contextlib.nullcontext():
            made, posterior = self._vae(original, noise=noise)
        share = original.shape[2] / video.shape[2]
        with torch.autocast(self._world.device.type, enabled=False):
            gradient, figures = self._gradient(made, original, share, rng, plays=self._plays(step))
            kl = Gaussian(*map(_exact, posterior)).kl().sum() / video.numel()  # in nats per pixel value
            # The gradient at the reconstruction stands for the losses it came from.
            value = (_exact(made) * gradient).sum() / len(video) + self._settings.kl * kl
        if self._plays(step):
            self._pairs.append((made.detach(), original))
        figures = {name: each.mean() for name, each in figures.items()}
        return Loss(value, {**figures, "kl": kl, "loss": figures["loss"] + self._settings.kl * kl})

    def _video(self, batch: Batch) -> Tensor:
        dtype = next(self._vae.parameters()).dtype
        return batch.video.to(self._world.device, non_blocking=True).to(dtype) / 127.5 - 1

    def _span(self, num_frames: int) -> tuple[slice, slice]:
        """The frames, and the latents, that are this rank's."""
        group = self._world.context
        span = split_frames(num_frames, group.size() if group else 1)[group.rank() if group else 0]
        ratio = self._vae.config.time_ratio
        first = (span.start - 1) // ratio + 1 if span.start else 0
        return span, slice(first, (span.stop - 1) // ratio + 1)

    def _gradient(
        self, made: Tensor, original: Tensor, share: float, rng: torch.Generator, *, plays: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of each sample's loss at its reconstruction, and this rank's share of each sample's figures."""
        shown = _exact(made.detach()).requires_grad_()
        with torch.enable_grad():
            difference = shown - original
            each = difference.abs() if self._settings.reconstruction == "l1" else difference.square()
            loss = reconstruction = each.mean(dim=(1, 2, 3, 4)) * share  # (B,)
            figures = {"reconstruction": reconstruction}
            if self._perceptual is not None:
                figures["perceptual"] = self._perceptual(shown, original, rng=rng) * share
                loss = loss + self._settings.perceptual.weight * figures["perceptual"]
            (gradient,) = torch.autograd.grad(loss.sum(), shown)
            figures["loss"] = loss
            figures["psnr"] = psnr(shown.detach(), original) * share
            if plays:
                window = self._window(shown.shape[2], rng)
                fooling = fooling_loss(self._discriminator(shown[:, :, window])) * len(shown)
                (pull,) = torch.autograd.grad(fooling, shown)
                scale = self._settings.adversarial.weight * self._length(gradient) / self._length(pull).clamp(min=1e-12)
                gradient = gradient + scale.view(-1, 1, 1, 1, 1) * pull
                figures["fooling"] = fooling.expand(len(shown)) / len(shown) * share
        return gradient, {name: value.detach() for name, value in figures.items()}

    def _length(self, gradient: Tensor) -> Tensor:
        """(B, ...) to (B,), over all ranks that share the samples."""
        squared = gradient.square().sum(dim=(1, 2, 3, 4))
        if self._world.context is not None:
            dist.all_reduce(squared, group=self._world.context)
        return squared.sqrt()

    def _window(self, num_frames: int, rng: torch.Generator) -> slice:
        """Frames that the discriminator is shown."""
        most = self._settings.adversarial.frames
        first = int(torch.randint(max(1, num_frames - most + 1), (), generator=rng, device=rng.device))
        return slice(first, first + most)

    def _judging(self, made: Tensor, original: Tensor, rng: torch.Generator) -> Loss:
        """What the discriminator learns from a reconstruction and its original."""
        ranks = dist.get_world_size(self._world.context) if self._world.context else 1
        window = self._window(made.shape[2], rng)
        fake, real = made[:, :, window], original[:, :, window]
        verdicts = [self._discriminator(video).float() for video in (real, fake)]
        loss = hinge_loss(*verdicts)
        figures = {"discriminator": loss, "real": verdicts[0].mean(), "fake": verdicts[1].mean()}
        if weight := self._settings.adversarial.penalty:
            figures["penalty"] = gradient_penalty(self._discriminator.forward, real)  # not compiled
            loss = loss + 0.5 * weight * figures["penalty"]
        return Loss(loss / ranks, {name: value.detach() / ranks for name, value in figures.items()})

    def judge(self, step: int, folder: Path) -> dict[str, float]:
        """PSNR, SSIM, LPIPS where its weights are, and flicker; of images and videos apart."""
        names = ("psnr", "ssim", "flicker", "lpips", "count")
        # Every rank has every sum, whatever it was given to judge: they are added up over the ranks.
        sums = {(kind, name): 0.0 for kind in ("videos", "images") for name in names}
        rows: list[Any] = []
        for batch in self._held_out:
            original = self._video(batch)
            made = self._reconstructed(original)
            figures = {"psnr": psnr(made, original), "ssim": ssim(made, original), "flicker": flicker(made, original)}
            figures["count"] = torch.ones(len(made))
            if self._perceptual is not None:
                with torch.autocast(self._world.device.type, enabled=False):
                    figures["lpips"] = self._perceptual(made.float(), original)
            kind = "images" if original.shape[2] == 1 else "videos"
            for name, values in figures.items() if not batch.is_padding else ():
                sums[kind, name] += float(values.double().sum())
            if kind == "videos" and self._world.is_first and len(rows) < _SHOWN:
                rows += [beside([to_frames(original[i]), to_frames(made[i])]) for i in range(len(made))]
        totals = dict(zip(sums, self._world.total(*sums.values()), strict=True))
        if rows and self._world.is_first:
            _draw(folder / f"step-{step:08d}", rows[:_SHOWN])
        known = {key for key in totals if totals[key[0], "count"] and key[1] != "count"}
        known -= {("images", "flicker"), *([] if self._perceptual else [("videos", "lpips"), ("images", "lpips")])}
        return {f"{kind}_{name}": totals[kind, name] / totals[kind, "count"] for kind, name in sorted(known)}

    def _reconstructed(self, video: Tensor) -> Tensor:
        """Whole, for every rank; ranks that share samples pass a span each through the model, as when they learn."""
        if self._world.context is None:
            made: Tensor = self._vae(video)[0]
            return made
        span, _ = self._span(video.shape[2])
        with context_parallel(self._vae, self._world.context):
            made, _ = self._vae(video[:, :, span])
        return gather_frames(made, video.shape[2], self._world.context)

    def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self._vae.save_pretrained(folder, state=weights)


def _exact(values: Tensor) -> Tensor:
    """In float32 at least: losses are not to be rounded as products are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _draw(name: Path, rows: Sequence[Any]) -> None:
    """Originals beside their reconstructions: a video, and a contact sheet of it."""
    name.parent.mkdir(parents=True, exist_ok=True)
    same = [row for row in rows if row.shape == rows[0].shape]
    write_picture(name.with_suffix(".jpg"), contact_sheet(same))
    write_video(name.with_suffix(".mp4"), np.concatenate(same, axis=1), fps=8)
