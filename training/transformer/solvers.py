"""From noise to latents: the two solvers of CogVideoX, and how much the text guides at each step.

Steps are those of diffusers' ``CogVideoXDDIMScheduler`` and ``CogVideoXDPMScheduler``, down to the order in which
noise is drawn, so that one seed gives one video in both. That includes its integer stride: where the number of steps
does not divide 1000, a step ends up to a timestep from where the next begins (at most a thousandth of the noise).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from curation.errors import UsageError, nearest
from training.transformer.diffusion import Diffusion


class Solver(abc.ABC):
    """Takes the steps of one sample or batch; a new one for each.

    Attributes:
        timesteps: from the last, 999, downwards ("trailing" spacing: the only one that starts at pure noise).
    """

    def __init__(self, diffusion: Diffusion, steps: int) -> None:
        last = diffusion.num_train_timesteps
        if not 1 <= steps <= last:
            raise UsageError(f"{steps} sampling steps; choose from 1 to {last} (50 is usual)")
        self.timesteps: list[int] = (np.round(np.arange(last, 0, -last / steps)).astype(int) - 1).tolist()
        self._alphas = diffusion.alphas_cumprod
        self._stride = last // steps

    def _alpha(self, t: int) -> float:
        return float(self._alphas[t]) if t >= 0 else 1.0

    def step(self, index: int, v: Tensor, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """From ``x`` at ``timesteps[index]``, with the predicted velocity ``v``, to the ``x`` of the next timestep.

        ``draw`` gives normal noise in the shape of ``x``. After the last step ``x`` is clean.
        """
        t = self.timesteps[index]
        now, following = self._alpha(t), self._alpha(t - self._stride)
        clean = now**0.5 * x - (1 - now) ** 0.5 * v
        return self._step(index, x, clean, now=now, following=following, draw=draw)

    @abc.abstractmethod
    def _step(
        self, index: int, x: Tensor, clean: Tensor, *, now: float, following: float, draw: Callable[[], Tensor]
    ) -> Tensor:
        """``clean`` is what the sample is predicted to become; ``now`` and ``following`` are cumulative alphas."""


class DDIM(Solver):
    """Deterministic (arXiv 2010.02502, eta 0)."""

    def _step(
        self, index: int, x: Tensor, clean: Tensor, *, now: float, following: float, draw: Callable[[], Tensor]
    ) -> Tensor:
        kept = ((1 - following) / (1 - now)) ** 0.5
        return kept * x + (following**0.5 - now**0.5 * kept) * clean


class DPM(Solver):
    """SDE-DPM-Solver++ of second order (arXiv 2211.01095): fewer steps are enough; noise is added at each."""

    _before: Tensor | None = None  # what the last step predicted
    _last: float = 0.0  # half the logarithm of the signal-to-noise ratio at the last step

    def _step(
        self, index: int, x: Tensor, clean: Tensor, *, now: float, following: float, draw: Callable[[], Tensor]
    ) -> Tensor:
        here = _half_log_snr(now)
        gap = _half_log_snr(following) - here
        noise = draw()
        guess = clean
        if self._before is not None and following < 1.0:
            weight = gap / (2 * (here - self._last))  # 0 after the step from pure noise
            guess = (1 + weight) * clean - weight * self._before
            noise = draw()  # diffusers has drawn one for a step of first order by now, and drops it
        self._before, self._last = clean, here
        kept = ((1 - following) / (1 - now)) ** 0.5 * math.exp(-gap)
        added = ((1 - following) * -math.expm1(-2 * gap)) ** 0.5
        return kept * x - math.expm1(-2 * gap) * following**0.5 * guess + added * noise


def _half_log_snr(alpha: float) -> float:
    if alpha <= 0.0:
        return -math.inf
    return math.inf if alpha >= 1.0 else 0.5 * math.log(alpha / (1 - alpha))


SOLVERS: Mapping[str, type[Solver]] = {"ddim": DDIM, "dpm": DPM}


def solver(name: str, diffusion: Diffusion, steps: int) -> Solver:
    """The solver called ``name``; UsageError if there is none."""
    if name not in SOLVERS:
        raise UsageError(f"no solver {name!r}.{nearest(name, SOLVERS)}")
    return SOLVERS[name](diffusion, steps)


def _constant(scale: float, *, index: int, steps: int, t: int) -> float:
    return scale


def _dynamic(scale: float, *, index: int, steps: int, t: int) -> float:
    return 1 + scale * (1 - math.cos(math.pi * (index / steps) ** 5)) / 2


def _dynamic_diffusers(scale: float, *, index: int, steps: int, t: int) -> float:
    return 1 + scale * (1 - math.cos(math.pi * ((steps - t) / steps) ** 5.0)) / 2


GUIDANCE: Mapping[str, Callable[..., float]] = {
    "constant": _constant,
    "dynamic": _dynamic,
    "dynamic_diffusers": _dynamic_diffusers,
}
"""How the scale of classifier-free guidance runs over the steps. ``dynamic`` rises from 1 to 1 + scale, as in SAT.

``dynamic_diffusers`` is what the pipelines of diffusers do with ``use_dynamic_cfg``: they put the timestep (999 to 0)
in the place of the step, and so jump between 1 and 1 + scale for most of the way.
"""


def guidance(name: str) -> Callable[..., float]:
    """The course of guidance called ``name``; UsageError if there is none."""
    if name not in GUIDANCE:
        raise UsageError(f"no guidance {name!r}.{nearest(name, GUIDANCE)}")
    return GUIDANCE[name]
