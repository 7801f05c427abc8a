"""How the samples of a training fall into packs or batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.data.settings import DataSettings
from training.transformer import packing
from training.transformer.config import TransformerConfig
from training.transformer.packing import Groups
from training.transformer.samples import View, latent_frames
from training.transformer.settings import PackingSettings
from training.vae.config import VAEConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of every epoch.

    Attributes:
        views: of each sample.
        words: tokens of a text.
    """

    views: Sequence[View]
    data: DataSettings
    packing: PackingSettings | None
    transformer: TransformerConfig
    vae: VAEConfig
    words: int

    def tokens(self, view: View) -> int:
        """Of a sample, with its text."""
        bucket, config = self.data.buckets[view.bucket], self.transformer
        frames = latent_frames(bucket, is_image=view.is_image, ratio=self.vae.time_ratio)
        side = self.vae.space_ratio * config.patch_size
        return self.words + -(-frames // config.time_patch) * (bucket.height // side) * (bucket.width // side)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, int64 (N,)."""
        known: dict[tuple[int, bool], int] = {}
        for view in self.views:
            if (kind := (view.bucket, view.is_image)) not in known:
                known[kind] = self.tokens(view)
        return np.array([known[view.bucket, view.is_image] for view in self.views], np.int64)

    def __call__(self, epoch: int) -> Groups:
        """The groups of an epoch.

        Raises:
            UsageError: a sample is longer than a pack.
        """
        seed = self.data.seed
        if self.packing is not None:
            return packing.packs(
                self.lengths, tokens=self.packing.tokens, seed=seed, epoch=epoch, look_ahead=self.packing.look_ahead
            )
        return packing.batches(
            [2 * view.bucket + view.is_image for view in self.views],
            [size for number in range(len(self.data.buckets)) for size in self.batch_sizes(number)],
            seed=seed,
            epoch=epoch,
            following=self.data.group,
            fill=self.data.short == "fill",
        )

    def batch_sizes(self, bucket: int) -> tuple[int, int]:
        """Samples of a batch of clips, and of images."""
        size = self.data.buckets[bucket].batch_size
        return size, self.data.image_batch_size or size

    @property
    def decides(self) -> list[Any]:
        """What the groups depend on besides the samples."""
        data = [self.data.seed, [dataclasses.asdict(bucket) for bucket in self.data.buckets]]
        if self.packing is not None:
            return [*data, self.words, self.packing.tokens, self.packing.look_ahead]
        return [*data, self.data.image_batch_size, self.data.group, self.data.short]
