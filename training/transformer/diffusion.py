"""The diffusion of CogVideoX: how latents are noised, what the transformer is to predict, and at which timesteps.

    diffusion = Diffusion(snr_shift_scale=1.0)                     # or Diffusion.from_pretrained(folder)
    t = timesteps(seed=0, step=7, total=64, indices=range(8, 16))  # of samples 8..15 of the 64 in this step
    v = transformer(diffusion.noised(latents, noise, t), text, t)
    loss = losses(v, diffusion.velocity(latents, noise, t)).mean()

Source: the CogVideoX technical report (arXiv 2408.06072), v-prediction (arXiv 2202.00512), zero terminal SNR (arXiv
2305.08891), and the SNR shift of Stable Diffusion 3 (arXiv 2403.03206) as in diffusers' ``CogVideoXDDIMScheduler``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.errors import UsageError
from curation.files import aside
from training import weights

FILE = "scheduler_config.json"
_FIXED = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
_UNREAD = {"clip_sample": False, "clip_sample_range": 1.0, "sample_max_value": 1.0, "steps_offset": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """How much noise each timestep has. The fields are those of diffusers' ``scheduler_config.json``.

    ``snr_shift_scale`` is 3 for 2b and 1 for 5b; higher means more noise at the same timestep.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift_scale: float = 3.0

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """The share of the signal's variance at each timestep, fp64: from nearly 1 down to exactly 0."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        alphas = np.cumprod(1.0 - betas)
        alphas = alphas / (self.snr_shift_scale + (1.0 - self.snr_shift_scale) * alphas)  # the shift comes first
        roots = np.sqrt(alphas)
        return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2

    def _parts(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the signal and of the noise is in a sample at ``t`` (B,), ready to multiply ``like`` (B, ...)."""
        alphas = torch.from_numpy(self.alphas_cumprod).to(t.device)[t].view(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1.0 - alphas).sqrt().to(like.dtype)

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor, *, clean: Tensor | None = None) -> Tensor:
        """``latents`` (B, T, ...) with the noise of timesteps ``t`` (B,), in fp32 at least.

        Frames that are ``clean``, bool (B, T), are left as they are.
        """
        latents, noise = _wide(latents), _wide(noise)
        signal, part = self._parts(t, latents)
        mixed = signal * latents + part * noise
        return mixed if clean is None else torch.where(_over(clean, latents), latents, mixed)

    def velocity(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What is to be predicted: v = signal * noise - part * latents, in fp32 at least."""
        latents, noise = _wide(latents), _wide(noise)
        signal, part = self._parts(t, latents)
        return signal * noise - part * latents

    def to_json(self) -> str:
        """The text of a ``scheduler_config.json`` that diffusers opens too."""
        values = {"_class_name": "CogVideoXDDIMScheduler", **_FIXED, **_UNREAD, **dataclasses.asdict(self)}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Diffusion:
        """Read a parsed ``scheduler_config.json``; UsageError if it is that of another diffusion."""
        for name, value in _FIXED.items():
            if values.get(name, value) != value:
                raise UsageError(f"{name} {values[name]!r} is not built; CogVideoX has {value!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Diffusion:
        """Read the file in the subfolder ``scheduler`` of ``folder`` or in itself; UsageError if there is none."""
        for file in (Path(folder, "scheduler", FILE), Path(folder, FILE)):
            if file.is_file():
                try:
                    return cls.from_mapping(weights.read_json(file))
                except UsageError as error:
                    raise UsageError(f"{file} cannot be used: {error}") from error
        raise UsageError(
            f"{folder} has no scheduler/{FILE}, which says how much noise a timestep has; give the folder of a whole "
            "pipeline, or state the shift of the signal-to-noise ratio (3 for 2b, 1 for 5b)"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``scheduler_config.json`` into ``folder`` (a pipeline's ``scheduler``)."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with aside(Path(folder, FILE)) as file:
            file.write_text(self.to_json(), encoding="utf-8")


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over(clean: Tensor, like: Tensor) -> Tensor:
    """(B, T) to (B, T, 1, ...)."""
    return clean.view(*clean.shape, *[1] * (like.ndim - 2))


def losses(
    prediction: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    *,
    clean: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """The mean squared error of each sample of a batch (B, T, C, H, W) or of a pack (lists of (T, C, H, W)): (B,).

    In fp32 at least. Frames that are ``clean`` are left out; a sample of nothing else has no loss (0). The mean over
    samples is the usual loss; weigh them by their tokens for the mean over tokens.
    """
    if not isinstance(prediction, Tensor):
        masks = [None] * len(prediction) if clean is None else [mask[None] for mask in clean]
        pairs = zip(prediction, target, masks, strict=True)
        return torch.cat([losses(p[None], v[None], clean=mask) for p, v, mask in pairs])
    assert isinstance(target, Tensor)
    errors = (_wide(prediction) - _wide(target)).square().flatten(2).mean(2)  # (B, T)
    if clean is None:
        return errors.mean(1)
    assert isinstance(clean, Tensor)
    kept = (~clean).to(errors.dtype)
    return (errors * kept).sum(1) / kept.sum(1).clamp(min=1)


def timesteps(*, seed: int, step: int, total: int, indices: Iterable[int], num_train_timesteps: int = 1000) -> Tensor:
    """The timesteps of samples ``indices`` of the ``total`` in a training step, over all ranks and micro-batches.

    The timesteps are cut into ``total`` equal intervals, every sample draws from one, and which one it is changes
    with the step. So a step always covers all timesteps evenly (the report's Explicit Uniform Sampling, which has an
    interval for each rank), and what a sample draws depends on its index alone, not on how many ranks there are.
    """
    draw = np.random.default_rng([seed, step])
    places, within = draw.permutation(total), draw.random(total)
    t = np.floor((places + within) / total * num_train_timesteps).astype(np.int64)
    # (total - 1 + 0.99...) / total can round to 1.
    return torch.from_numpy(t.clip(max=num_train_timesteps - 1))[list(indices)]
