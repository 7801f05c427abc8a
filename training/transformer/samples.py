"""What there is to learn from: which clip goes into which shape, and the names of its latents and its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.read import Catalogue
from training.data.assign import assign
from training.data.chance import draws
from training.data.settings import Bucket, DataSettings
from training.transformer.cache import Cache, content_key
from training.transformer.contents import Content

_VERSION = 1  # raise it when the same settings would give other latents


class View(NamedTuple):
    """One clip, or one frame of it, as it is to be cut."""

    row: int  # of the catalogue
    bucket: int  # of the settings
    is_image: bool

    def frames(self, settings: DataSettings) -> int:
        """How many there are."""
        return 1 if self.is_image else settings.buckets[self.bucket].frames


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the model learns from one view: names in the caches.

    Attributes:
        latent: of the posterior.
        text: of the caption's embedding; None without a caption.
        image: of the posterior of the first frame, for image-to-video.
        view: where it is from.
    """

    latent: str
    text: str | None
    image: str | None
    view: View
    caption: str


def views(catalogue: Catalogue, settings: DataSettings) -> list[View]:
    """Every clip in the bucket that it fits, and single frames of some of the clips.

    The buckets are those of the first epoch of all: with a bucket's ``keep`` below 1 a clip stays where it fell, for it
    is encoded once. Frames are of clips drawn by their keys, so many that they are ``images`` of all samples, but at
    most one of each clip.
    """
    assignment = assign(catalogue, settings, 0)
    clips = [View(int(row), int(assignment.bucket[row]), False) for row in np.flatnonzero(assignment.bucket >= 0)]
    share = settings.images / (1 - settings.images)
    keys = catalogue.table["key"]
    images = [
        view._replace(is_image=True)
        for view in clips
        if share
        and settings.buckets[view.bucket].frames > 1
        and draws(settings.seed, 0, "image", keys[view.row].as_py())[0] < share
    ]
    return clips + images


class Cut(NamedTuple):
    """What decides which pixels a view shows, besides the clip."""

    frames: int
    fps: float | None
    height: int
    width: int
    crop: str
    zoom: float
    flip: float


def cut(settings: DataSettings, view: View) -> Cut:
    """What is cut out of a clip for a view."""
    bucket = settings.buckets[view.bucket]
    frames, fps = view.frames(settings), None if view.is_image else bucket.fps
    return Cut(frames, fps, bucket.height, bucket.width, settings.crop, settings.zoom, settings.flip)


def name(
    found: Sequence[View],
    known: Sequence[Content],
    settings: DataSettings,
    *,
    vae: str,
    text: str,
    image: str | None,
) -> list[Sample]:
    """The samples of views, without those whose videos cannot be read.

    Args:
        known: of each row of the catalogue, its caption with whatever is to be said behind it.
        vae: what decides a latent, besides the pixels: weights, chunks, tiles, precision.
        text: what decides an embedding, besides the caption.
        image: what decides the noise on the first frame; None where the model reads none.
    """
    samples = []
    for view in found:
        content = known[view.row]
        if content.digest is None:
            continue
        pixels = [_VERSION, content.digest, *cut(settings, view)]
        samples.append(
            Sample(
                latent=content_key(*pixels, vae),
                text=content_key(content.caption, text) if content.caption.strip() else None,
                image=None if image is None else content_key(*pixels, vae, image),
                view=view,
                caption=content.caption,
            )
        )
    return samples


def readable(samples: Sequence[Sample], latents: Cache) -> list[Sample]:
    """Those whose clips could be decoded."""
    return [sample for sample in samples if sample.latent in latents and latents[sample.latent].bad is None]


def latent_frames(bucket: Bucket, *, is_image: bool, ratio: int) -> int:
    """Frames of the latents of a bucket's clips or images."""
    return 1 if is_image else (bucket.frames - 1) // ratio + 1
