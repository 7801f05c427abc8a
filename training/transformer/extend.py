"""Videos made in windows: from a text alone, continued from frames that are given, to frames that are given, in a loop.

    make(models, text, windows=plan(49, frames=49), shape=shape, seeds=[0], settings=Sampling())  # from a text alone
    make(models, text, windows=plan(200, frames=49, overlap=13, have=80), head=video, …)  # continues 80 frames to 200
    make(models, text, windows=[Window(49, head=1, tail=1)], head=first, tail=last, …)  # between two pictures

A window's first frames are the last ones of what there is (the overlap): they are encoded, stay as they are at every
step, and are not replaced by what the VAE makes of them. Its last frames may be given likewise. For a transformer that
was trained with such frames (see ``clean`` in ``Transformer.forward``); another one tends to ignore them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curation.errors import UsageError
from training.transformer.config import TransformerConfig
from training.transformer.models import Models
from training.transformer.sampling import Draws, Sampling, check_size, decode, denoise, image_latents, scaled
from training.vae.config import Chunks, Tiles, VAEConfig
from training.vae.model import VAE


@dataclasses.dataclass(frozen=True)
class Window:
    """What is made at once: ``frames`` (4k+1), of which the first ``head`` (4k+1 or 0) and last ``tail`` are given.

    ``tail`` is 4k, or 1: a single picture, that the last latent shows four times (a latent stands for four frames).
    ``kept`` of the frames between are kept; None: all.
    """

    frames: int
    head: int = 0
    tail: int = 0
    kept: int | None = None

    @property
    def new(self) -> int:
        """Frames that a video grows by."""
        between = self.frames - self.head - self.tail
        return between if self.kept is None else self.kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a frame, px, and how the VAE's work is cut (see ``training.vae.config``)."""

    height: int
    width: int
    chunks: Chunks | None = dataclasses.field(default_factory=Chunks)
    tiles: Tiles | None = None


def default_overlap(frames: int) -> int:
    """The frames of a quarter of a window's latents: as many as training's masks of quarters leave clean."""
    latents = max(1, ((frames - 1) // 4 + 1) // 4)
    return 4 * (latents - 1) + 1


def plan(
    length: int | None, *, frames: int, overlap: int | None = None, have: int = 0, loop: bool = False
) -> list[Window]:
    """The windows that make a video of ``length`` frames from the ``have`` first ones.

    Args:
        length: None is one window more than there is, and one more for a loop.
        frames: of the largest window, 4k+1.
        overlap: frames that a window takes over from those before it, 4k+1; fewer where there are fewer.
        loop: the last window leads back to the first frames: after the last frame the first may be shown.

    Raises:
        UsageError: no windows are so; the message says the nearest that are.
    """
    if overlap is None and not have and not loop and (length or frames) <= frames:
        length = length or frames
        return [Window(min(frames, _next(length, 1)), kept=length)]
    overlap = default_overlap(frames) if overlap is None else overlap
    if overlap < 1 or overlap % 4 != 1 or overlap >= frames:
        raise UsageError(f"--overlap {overlap}: 4k+1 below the window of {frames} frames is meant, such as 1, 5 or 9")
    tail = max(4, overlap - 1) if loop else 0
    room = frames - overlap - tail  # for what closes the loop
    if loop and room < 4:
        raise UsageError(
            f"--loop: windows of {frames} frames with {overlap} and {tail} of them given at the ends have no room for "
            "4 new ones; give a smaller --overlap, or more --frames"
        )
    # The loop closes in a whole window, upon as many frames as it leads to.
    least = _next(max(have, tail + 1), have or 1) if loop else have
    if length is None:
        length = have + frames - _taken(overlap, have) if not loop else (least if have else frames) + room
    if length <= have:
        raise UsageError(f"--length {length}: the video has {have} frames already; it is the length of all")
    if loop and (length < least + 4 or (length - least) % 4):
        near = max(least + 4, least + round((length - least) / 4) * 4)
        raise UsageError(f"--length {length}: a loop can have {near} frames, as windows are 4k+1")
    first = have or min(frames, length - 4 if loop else _next(length, 1))
    last = min(room, length - (least if have else first)) if loop else 0
    windows = [] if have else [Window(first, kept=min(first, length))]
    grown = min(first, length)
    while grown < length - last:
        head = _taken(overlap, grown)
        new = min(frames - head, length - last - grown)
        windows.append(Window(head + _next(new, 0), head=head, kept=new))
        grown += new
    if loop:
        head = _taken(overlap, grown)
        windows.append(Window(head + last + tail, head=head, tail=tail))
    return windows


def _taken(overlap: int, grown: int) -> int:
    """How many of ``grown`` frames a window takes over: 4k+1, ``overlap`` at most."""
    return min(overlap, (grown - 1) // 4 * 4 + 1)


def _next(frames: int, start: int) -> int:
    """The smallest number from ``frames`` on that is ``start`` and a multiple of 4."""
    return frames + (start - frames) % 4


@torch.no_grad()
def make(
    models: Models,
    text: Tensor,
    *,
    windows: Sequence[Window],
    shape: Shape,
    seeds: Sequence[int],
    settings: Sampling,
    negative: Tensor | None = None,
    image: Tensor | None = None,
    head: Tensor | None = None,
    tail: Tensor | None = None,
    each: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Videos (B, 3, T, height, width) in -1..1, fp32, on the CPU, one for each text (B, L, D).

    Args:
        windows: of ``plan``. CogVideoX 1.5 makes up to 4 more frames in front to fill its patches; they are dropped.
        seeds: one for each; a sample does not depend on its company.
        negative: embeddings to go away from, instead of those of no text (zeros).
        image: (B, 3, height, width), the first frame, for an image-to-video transformer. Where it is left out, and in
            later windows, that reads the first frame of the window.
        head: (B, 3, N, height, width), the frames that are continued; they come first in the result, untouched.
        tail: (B, 3, M, height, width), the frames that the last window leads to; they come last, untouched. Without
            it a window with a tail leads to the first frames of the result, which are not repeated.
        each: called after each step with its index and the latents (B, T, C, H, W).

    Raises:
        UsageError: a size that the models cannot make, an image where none is read, or none where one is.
    """
    _check(models, text, windows=windows, shape=shape, seeds=seeds, image=image)
    draws = Draws(seeds)
    video = torch.zeros(len(text), 3, 0, shape.height, shape.width) if head is None else head.float().cpu()
    for window in windows:
        before = video[:, :, video.shape[2] - window.head :]
        after = video[:, :, : window.tail] if tail is None else tail[:, :, : window.tail]
        made = _window(
            models,
            text,
            window=window,
            shape=shape,
            draws=draws,
            settings=settings,
            negative=negative,
            picture=image if image is not None and not window.head else before[:, :, 0] if window.head else None,
            ends=(before, after),
            each=each,
        )
        video = torch.cat([video, made[:, :, window.head : window.head + window.new].cpu()], dim=2)
    return video if tail is None else torch.cat([video, tail.float().cpu()], dim=2)


def _check(
    models: Models,
    text: Tensor,
    *,
    windows: Sequence[Window],
    shape: Shape,
    seeds: Sequence[int],
    image: Tensor | None,
) -> None:
    config = models.transformer.config
    for window in windows:
        check_size(config, models.vae.config, frames=window.frames, height=shape.height, width=shape.width)
    if len(seeds) != len(text):
        raise UsageError(f"{len(seeds)} seeds for {len(text)} texts; give one for each")
    if image is None:
        if config.reads_image and not windows[0].head:
            raise UsageError("this transformer continues a picture (image-to-video): give one as image")
        return
    if not config.reads_image:
        raise UsageError(
            "this transformer reads no picture (text-to-video): leave image out, or load an image-to-video one"
        )
    if image.shape != (expected := (len(text), 3, shape.height, shape.width)):
        raise UsageError(f"image is {tuple(image.shape)}; {expected} is asked for")


def _window(
    models: Models,
    text: Tensor,
    *,
    window: Window,
    shape: Shape,
    draws: Draws,
    settings: Sampling,
    negative: Tensor | None,
    picture: Tensor | None,
    ends: tuple[Tensor, Tensor],
    each: Callable[[int, Tensor], None] | None,
) -> Tensor:
    """One window (B, 3, frames, height, width). ``ends`` are the given frames, first and last."""
    config = models.transformer.config
    first = given = clean = None
    with models.using(models.vae) as vae:
        if config.reads_image:
            assert picture is not None, "the first window has one, or frames to take it from"
            first = image_latents(vae, picture, draws)
        if window.head or window.tail:
            given, clean = conditions(vae, window, *ends, shape=shape)
        _, *latent = vae.latent_shape(window.frames, shape.height, shape.width)
    with models.using(models.transformer) as transformer:
        latents = denoise(
            transformer,
            text,
            shape=(latent[0], latent[1], latent[2]),
            diffusion=models.diffusion,
            draws=draws,
            settings=settings,
            negative=negative,
            first=first,
            given=given,
            clean=clean,
            each=each,
        )
    with models.using(models.vae) as vae:
        return decode(vae, latents, chunks=shape.chunks, tiles=shape.tiles)


def conditions(vae: VAE, window: Window, before: Tensor, after: Tensor, *, shape: Shape) -> tuple[Tensor, Tensor]:
    """The latents that are given (B, T, C, h, w), scaled, and which of them are: bool (B, T).

    The VAE is causal: the frames before are encoded as a video of their own. Those after begin in its midst, where a
    latent stands for four frames; so they are encoded behind a copy of their first, whose latent is dropped.
    """
    parts: list[tuple[int, Tensor]] = []
    count = (window.frames - 1) // vae.config.time_ratio + 1
    if window.head:
        parts.append((0, _encode(vae, before, shape)))
    if window.tail:
        missing = -window.tail % vae.config.time_ratio
        frames = torch.cat([after[:, :, :1], after, *[after[:, :, -1:]] * missing], dim=2)
        latents = _encode(vae, frames, shape)[:, 1:]
        parts.append((count - latents.shape[1], latents))
    like = parts[0][1]
    given = like.new_zeros(len(like), count, *like.shape[2:])
    clean = torch.zeros(len(like), count, dtype=torch.bool, device=like.device)
    for start, latents in parts:
        given[:, start : start + latents.shape[1]] = latents
        clean[:, start : start + latents.shape[1]] = True
    return given, clean


def _encode(vae: VAE, frames: Tensor, shape: Shape) -> Tensor:
    weight = next(vae.parameters())
    posterior = vae.encode(frames.to(weight.device, weight.dtype), chunks=shape.chunks, tiles=shape.tiles)
    return scaled(posterior.mean, vae.config).float()


def check_window(config: TransformerConfig, vae: VAEConfig, *, frames: int, height: int, width: int) -> None:
    """Raise UsageError, with the nearest possible size, for a window that cannot be made; before any work."""
    check_size(config, vae, frames=frames, height=height, width=width)
    check_positions(config, vae, frames=frames, height=height, width=width)


def check_positions(config: TransformerConfig, vae: VAEConfig, *, frames: int, height: int, width: int) -> None:
    """Raise UsageError for videos at positions that a transformer with learned ones has not."""
    if config.use_learned_positional_embeddings:
        learned = [side * vae.space_ratio for side in (config.sample_height, config.sample_width)]
        if [height, width] != learned or frames > config.sample_frames:
            raise UsageError(
                f"{frames} frames of {height}x{width}: this transformer learned its positions, for up to "
                f"{config.sample_frames} frames of {learned[0]}x{learned[1]}"
            )
