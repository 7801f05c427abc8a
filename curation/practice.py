"""The training half of ``cutroom demo``: a tiny VAE and a tiny transformer on the shards of the lessons, and samples.

Everything goes the way that real training goes: configs that come with Cutroom, shards that a run wrote, captions of
version 1. Both models begin with random weights and learn for a minute or so on one CPU thread, which is short.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.transformer.produce import Made

VAE_MINUTES, TRANSFORMER_MINUTES = 0.7, 1.5  # the VAE's in each of its two stages
_SIDE, _FRAMES = 64, 5  # as in the debug recipes
Say = Callable[[str], None]


def _quiet(text: str) -> None:
    """Say nothing: the figures are in ``metrics.jsonl``."""


@dataclasses.dataclass(frozen=True)
class Practice:
    """The folders and steps of the training half. Every step may be called again and continues.

    Attributes:
        shards: the output of a run, with clips of ``_FRAMES`` frames or more, ``_SIDE`` px a side or more.
        folder: for the models and samples.
    """

    shards: Path
    folder: Path
    vae_minutes: float = VAE_MINUTES
    transformer_minutes: float = TRANSFORMER_MINUTES

    @property
    def vae(self) -> Path:
        """The VAE's weights."""
        return self.folder / "vae" / "videos" / "weights"

    @property
    def model(self) -> Path:
        """The whole pipeline, as diffusers opens it."""
        return self.folder / "transformer" / "weights"

    def progress(self, training: str, figure: str) -> tuple[float, float]:
        """A figure on clips held out, before the first step and after the last."""
        lines = (self.folder / training / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = [value for line in lines if (value := json.loads(line).get(f"held_out_{figure}")) is not None]
        return found[0], found[-1]

    def train_vae(self, say: Say = _quiet) -> dict[str, float]:
        """Train the VAE. Returns the last figures on clips held out."""
        from training.recipes import find_recipe
        from training.vae.run import train_vae

        changes = [_path("data.shards", self.shards), "data.workers=1", f"training.minutes={self.vae_minutes}"]
        with _one_thread():
            return train_vae(find_recipe(Path("vae-debug")), self.folder / "vae", changes=changes, say=say)

    def train_transformer(self, say: Say = _quiet) -> dict[str, float]:
        """Train the transformer on the VAE's latents. Returns the last figures on clips held out."""
        from training.recipes import find_recipe
        from training.transformer.run import train_transformer

        changes = [
            _path("data.shards", self.shards),
            _path("vae.start", self.vae),
            "data.workers=1",
            f"training.minutes={self.transformer_minutes}",
        ]
        recipe = find_recipe(Path("transformer-debug"))
        with _one_thread():
            return train_transformer(recipe, self.folder / "transformer", changes=changes, say=say)

    def sample(self, prompts: Sequence[str]) -> list[Made]:
        """A video for each prompt."""
        from training.transformer.models import Sources
        from training.transformer.produce import run
        from training.transformer.requests import Request, prepare
        from training.transformer.sampling import Sampling

        request = Request(
            prompts=tuple(prompts),
            sources=Sources(model=str(self.model)),
            frames=_FRAMES,
            height=_SIDE,
            width=_SIDE,
            fps=4.0,
            settings=Sampling(steps=25, solver="ddim", guidance=4.0),
            device="cpu",
        )
        with _one_thread():
            return list(run(prepare(request), self.folder / "samples"))


def _path(name: str, path: Path) -> str:
    """A change of settings, whatever letters the path has."""
    return f"{name}={json.dumps(str(path.absolute()))}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """More gain little on so small models, and take the cores from whoever else works."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
