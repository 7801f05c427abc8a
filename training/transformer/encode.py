"""Encoding before training: clips to posteriors by the VAE, captions to embeddings, each kept by its content."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor, nn

from curation.errors import CutroomError
from shards.read import Catalogue
from training.data.decode import Bad, Job, decoder_for
from training.data.decode import Sample as Decoded
from training.data.faults import Faults
from training.data.pool import Pool
from training.data.settings import DataSettings
from training.distributed import World
from training.transformer.cache import Cache
from training.transformer.samples import Sample, cut
from training.transformer.text import TextEncoder
from training.vae.config import Chunks, Tiles
from training.vae.gaussian import Gaussian
from training.vae.model import VAE

_FILE_BYTES = 256 << 20  # of a file of the cache, about
_FILE_ENTRIES = 256
_TEXTS = 16  # captions that are encoded together
_KEPT = torch.float16  # three digits of a mean, which the posterior's own deviation drowns
Say = Callable[[str], None]


def digest_of(module: nn.Module) -> str:
    """The name of a module's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(module.state_dict().items()):
        digest.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class LatentEncoder:
    """A VAE that only encodes.

    Args:
        noise: mean and deviation of the logarithm of the noise on the first frame; None: no first frames are asked for,
            or they are to have none.
    """

    def __init__(
        self,
        vae: VAE,
        *,
        chunks: Chunks | None,
        tiles: Tiles | None,
        precision: str,
        noise: tuple[float, float] | None,
        device: torch.device,
    ) -> None:
        self._vae = vae.eval().requires_grad_(False).to(device)
        self._chunks, self._tiles, self._noise = chunks, tiles, noise
        self._autocast = precision == "bf16"
        self._device = device
        self.name = json.dumps([digest_of(vae), str(chunks), str(tiles), precision])
        self.image_name = json.dumps(["first frame", noise])

    @torch.no_grad()
    def clip(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (C, t, h, w) each, of a clip (3, T, H, W) uint8. Not scaled."""
        return self._encode(self._pixels(video))

    @torch.no_grad()
    def first_frame(self, video: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """The same of the first frame alone, with noise on its pixels that ``key`` decides."""
        picture = self._pixels(video[:, :1])
        if self._noise is not None:
            rng = torch.Generator().manual_seed(int(key[:15], 16))
            sigma = torch.exp(self._noise[0] + self._noise[1] * torch.randn((), generator=rng))
            picture = picture + sigma * torch.randn(picture.shape, generator=rng).to(picture.device)
        return self._encode(picture)

    def _pixels(self, video: Tensor) -> Tensor:
        return video[None].to(self._device).float() / 127.5 - 1

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            posterior: Gaussian = self._vae.encode(video, chunks=self._chunks, tiles=self._tiles)
        mean, std = posterior.mean[0].float(), posterior.std[0].float()
        return mean.to(_KEPT).cpu(), std.to(_KEPT).cpu()


def encode_latents(
    samples: Sequence[Sample],
    catalogue: Catalogue,
    settings: DataSettings,
    *,
    encoder: LatentEncoder,
    cache: Cache,
    world: World,
    say: Say,
) -> None:
    """Encode what is missing in the cache, each rank its share; at the end every rank has all.

    A clip that cannot be decoded is noted as bad, so that it costs its time only once.

    Raises:
        BadDataError: more clips are bad than the settings bear.
    """
    everything = _unencoded(samples, cache)
    if everything and world.is_first:
        say(f"encoding {len(everything)} clips and pictures; {len({s.latent for s in samples}) - len(everything)} kept")
    share = everything[world.rank :: world.size]
    faults = Faults(settings.max_bad, settings.bad_at_least)
    done: dict[str, tuple[Tensor, Tensor]] = {}
    bad: dict[str, str] = {}
    for count, (sample, video, made) in enumerate(_decoded(share, catalogue, settings), start=1):
        if isinstance(made, Bad):
            bad[sample.latent] = f"{made.reason}: {made.why}"
            faults.bad(made.reason, catalogue.table["key"][sample.view.row].as_py(), made.why)
            continue
        faults.good()
        if sample.latent not in cache:
            done[sample.latent] = encoder.clip(video)
        if sample.image and sample.image not in cache:
            done[sample.image] = encoder.first_frame(video, sample.image)
        size = sum(part.nbytes for parts in done.values() for part in parts)
        if size >= _FILE_BYTES or len(done) >= _FILE_ENTRIES:
            cache.write(done)
            done = {}
        if world.is_first and count % 500 == 0:
            say(f"encoded {count} of {len(share)}")
    cache.write(done, bad=bad)
    if bad and world.is_first:
        say(f"bad samples: {faults}")
    world.wait()
    cache.refresh()


def _unencoded(samples: Sequence[Sample], cache: Cache) -> list[Sample]:
    """Samples of which the latent, or that of the first frame, is not there; one for each latent."""
    wanted: dict[str, Sample] = {}
    for sample in samples:
        known = sample.latent in cache
        complete = known and (not sample.image or sample.image in cache or cache[sample.latent].bad is not None)
        if not complete:  # a kill may also have left one without the other
            wanted.setdefault(sample.latent, sample)
    return list(wanted.values())


def _decoded(
    samples: Sequence[Sample], catalogue: Catalogue, settings: DataSettings
) -> Iterator[tuple[Sample, Tensor, Decoded | Bad]]:
    """Each sample with its frames (3, T, H, W) uint8, some decoded ahead."""
    pool = Pool(workers=settings.workers, stall_s=settings.stall_s)
    ahead: deque[tuple[Sample, Tensor, Future[list[Decoded | Bad]]]] = deque()
    following = iter(samples)
    try:
        while True:
            for sample in itertools.islice(following, max(1, 2 * settings.workers) - len(ahead)):
                frames, _, height, width, *_ = cut(settings, sample.view)
                video = torch.empty((1, 3, frames, height, width), dtype=torch.uint8)
                ahead.append((sample, video, pool.submit([_job(sample, catalogue, settings)], video.numpy())))
            if not ahead:
                return
            sample, video, future = ahead.popleft()
            yield sample, video[0], future.result()[0]
    finally:
        pool.close()


def _job(sample: Sample, catalogue: Catalogue, settings: DataSettings) -> Job:
    """What the loader would ask for this clip, except that chance depends on its content alone."""
    row = {name: catalogue.table[name][sample.view.row].as_py() for name in catalogue.table.column_names}
    frames, fps, height, width, crop, zoom, flip = cut(settings, sample.view)
    return Job(
        url=catalogue.shards[row["shard"]].url,
        key=sample.latent,
        video=(row["video_offset"], row["video_bytes"]),
        text=None,
        row=None,
        decoder=decoder_for(settings.decoder),
        size=(row["height"], row["width"]),
        num_frames=row["num_frames"] if row["how"] is not None else None,
        length_s=row["num_frames"] / row["fps"],
        frames=frames,
        fps=fps,
        crop=(height, width),
        draw=(0, 0, "clip"),
        settings=(crop, zoom, flip),
    )


def encode_texts(
    samples: Sequence[Sample], *, load: Callable[[], TextEncoder], cache: Cache, world: World, say: Say
) -> None:
    """Encode the captions that are missing in the cache, each rank its share; at the end every rank has all.

    Args:
        load: the encoder, which is large and only loaded where there is something to encode.
    """
    captions = {sample.text: sample.caption for sample in samples if sample.text is not None}
    missing = cache.missing(captions)
    if missing and world.is_first:
        say(f"encoding {len(missing)} captions; {len(captions) - len(missing)} kept")
    share = missing[world.rank :: world.size]
    if share:
        encoder = load()
        encoder.encoder.to(world.device)
        for start in range(0, len(share), _FILE_ENTRIES):
            done: dict[str, tuple[Tensor]] = {}
            for at in range(start, min(start + _FILE_ENTRIES, len(share)), _TEXTS):
                keys = share[at : min(at + _TEXTS, start + _FILE_ENTRIES)]
                with warnings.catch_warnings():
                    # How many captions are too long was said before.
                    warnings.filterwarnings("ignore", message=r".* texts have more than .* tokens")
                    made = encoder([captions[key] for key in keys])
                done |= {key: (each.cpu(),) for key, each in zip(keys, made, strict=True)}
            cache.write(done)
        encoder.encoder.to("cpu")
    world.wait()
    cache.refresh()


def scaling_factor(samples: Sequence[Sample], cache: Cache) -> float:
    """One over the standard deviation of the samples' latents, to four digits."""
    squares = [cache[sample.latent].mean_square for sample in samples]
    if not squares or not np.mean(squares) > 0:
        raise CutroomError("there are no latents to measure the scaling factor by")
    return float(f"{1 / float(np.mean(squares)) ** 0.5:.4g}")


__all__ = ["LatentEncoder", "digest_of", "encode_latents", "encode_texts", "scaling_factor"]
