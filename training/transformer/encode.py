"""Encoding before training: clips to posteriors by the VAE, captions to embeddings, each kept by its content."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor, nn

from curation.errors import CutroomError
from shards.read import Catalogue
from training.data.decode import Bad, Job, job_of
from training.data.decode import Sample as Decoded
from training.data.faults import Faults
from training.data.pool import Pool
from training.data.settings import DataSettings
from training.distributed import World
from training.transformer.cache import BAD, Cache
from training.transformer.samples import Sample, cut
from training.transformer.text import TextEncoder
from training.vae.config import Chunks, Tiles
from training.vae.gaussian import Gaussian
from training.vae.model import VAE

_FILE_BYTES = 256 << 20  # of a file of the cache, about
_FILE_ENTRIES = 256
_MEASURED = 1024  # samples, about, by which latents are scaled
_TEXTS = 16  # captions that are encoded together
_CLIPS = 4  # small ones that are encoded together: torch convolves one alone on a CPU several times more slowly
_SMALL = 1 << 19  # pixels in all frames; others are encoded alone, for their memory
_MAY_PASS = ("unreadable", "crashed")  # a hiccup of the store, a stalled decoder
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
        config = dataclasses.asdict(vae.config)
        decides = [config[name] for name in ("norm_eps", "norm_num_groups", "temporal_compression_ratio")]
        self.name = json.dumps([digest_of(vae), decides, str(chunks), str(tiles), precision])
        self.image_name = json.dumps(["first frame", noise])

    def clips(self, videos: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Mean and deviation, (C, t, h, w) each, of each clip (3, T, H, W) uint8, all of one shape. Not scaled."""
        return self._encode([self._pixels(video) for video in videos])

    def first_frames(self, videos: Sequence[Tensor], keys: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """The same of the first frames alone, with noise on their pixels that each one's key decides."""
        return self._encode([self._first(video, key) for video, key in zip(videos, keys, strict=True)])

    def _first(self, video: Tensor, key: str) -> Tensor:
        picture = self._pixels(video[:, :1])
        if self._noise is not None:
            rng = torch.Generator().manual_seed(int(key[:15], 16))
            sigma = torch.exp(self._noise[0] + self._noise[1] * torch.randn((), generator=rng))
            picture = picture + sigma * torch.randn(picture.shape, generator=rng).to(picture.device)
        return picture

    def _pixels(self, video: Tensor) -> Tensor:
        return video.to(self._device).float() / 127.5 - 1

    @torch.no_grad()
    def _encode(self, videos: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Always as many at a time, with the last repeated: one's bits do not depend on who else there is."""
        made = []
        for start in range(0, len(videos), size := together(videos[0]) if videos else 1):
            part = list(videos[start : start + size])
            batch = torch.stack(part + part[-1:] * (size - len(part)))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                posterior: Gaussian = self._vae.encode(batch, chunks=self._chunks, tiles=self._tiles)
            mean, std = (each.float().to(_KEPT).cpu() for each in (posterior.mean, posterior.std))
            made += [(mean[i].clone(), std[i].clone()) for i in range(len(part))]
        return made


def together(video: Tensor) -> int:
    """How many clips of this shape (3, T, H, W) are encoded at a time."""
    return _CLIPS if math.prod(video.shape[1:]) <= _SMALL else 1


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

    A clip that cannot be decoded is noted as bad, so that it costs its time only once. One that failed for a reason
    that may pass is tried again first, when all others are done.

    Raises:
        BadDataError: more clips are bad than the settings bear.
        CutroomError: what other ranks encoded is not to be seen here.
    """
    everything = _unencoded(samples, cache)
    if everything and world.is_first:
        say(f"encoding {len(everything)} clips and pictures; {len({s.latent for s in samples}) - len(everything)} kept")
    if world.is_first:
        _say_left_out(samples, cache, say)
    share = [sample for sample in everything if _is_mine(sample.latent, world)]
    faults = Faults(settings.max_bad, settings.bad_at_least)
    done: dict[str, tuple[Tensor, Tensor]] = {}
    bad: dict[str, str] = {}
    waiting: dict[torch.Size, list[tuple[Sample, Tensor]]] = {}  # for others of their shape

    for count, (sample, video, made) in enumerate(_decoded_again(share, catalogue, settings), start=1):
        if isinstance(made, Bad):
            bad[sample.latent] = f"{made.reason}: {made.why}"
            faults.bad(made.reason, catalogue.table["key"][sample.view.row].as_py(), made.why)
            continue
        faults.good()
        group = waiting.setdefault(video.shape, [])
        group.append((sample, video))
        if len(group) == together(video):
            done |= _encoded(waiting.pop(video.shape), encoder, cache)
        size = sum(part.nbytes for parts in done.values() for part in parts)
        if size >= _FILE_BYTES or len(done) >= _FILE_ENTRIES:
            cache.write(done)
            done = {}
        if world.is_first and count % 500 == 0:
            say(f"encoded {count} of {len(share)}")
    for group in waiting.values():
        done |= _encoded(group, encoder, cache)
    cache.write(done)
    cache.note_bad(bad)
    if bad and world.is_first:
        say(f"bad samples: {faults}")
    world.wait()
    cache.refresh()
    _check_complete(len(_unencoded(samples, cache)), "clips", cache)


def _is_mine(key: str, world: World) -> bool:
    """Whether this rank encodes what is missing under a key.

    By the key alone: each rank has its own list of what is missing, for other trainings may write into the cache while
    one after the other opens it.
    """
    return int(key[:8], 16) % world.size == world.rank


def _check_complete(missing: int, what: str, cache: Cache) -> None:
    """Raise CutroomError where something is missing that some rank has encoded or noted as bad."""
    if missing:
        raise CutroomError(
            f"{missing} {what} are not in {cache.folder}, though all ranks have encoded their share: let every "
            "machine see the same folder, and remove nothing there; the same command encodes what is missing"
        )


def _encoded(
    group: Sequence[tuple[Sample, Tensor]], encoder: LatentEncoder, cache: Cache
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the cache lacks of clips of one shape, by key."""
    clips = {sample.latent: video for sample, video in group if sample.latent not in cache}
    pictures = {sample.image: video for sample, video in group if sample.image and sample.image not in cache}
    made = dict(zip(clips, encoder.clips(list(clips.values())), strict=True))
    return made | dict(zip(pictures, encoder.first_frames(list(pictures.values()), list(pictures)), strict=True))


def _say_left_out(samples: Sequence[Sample], cache: Cache, say: Say) -> None:
    left_out = {sample.latent: cache[sample.latent].bad for sample in samples if sample.latent in cache}
    if reasons := [why for why in left_out.values() if why is not None]:
        say(
            f"{len(reasons)} samples could not be read earlier and are left out, one for {reasons[0]!r}; "
            f"remove {cache.folder}/{BAD}* to try them again"
        )


def _unencoded(samples: Sequence[Sample], cache: Cache) -> list[Sample]:
    """Samples of which the latent, or that of the first frame, is not there; one for each latent."""
    wanted: dict[str, Sample] = {}
    for sample in samples:
        known = sample.latent in cache
        complete = known and (not sample.image or sample.image in cache or cache[sample.latent].bad is not None)
        if not complete:  # a kill may also have left one without the other
            wanted.setdefault(sample.latent, sample)
    return list(wanted.values())


def _decoded_again(
    samples: Sequence[Sample], catalogue: Catalogue, settings: DataSettings
) -> Iterator[tuple[Sample, Tensor, Decoded | Bad]]:
    """``_decoded``, and those once more that failed for a reason that may pass."""
    again = []
    for sample, video, made in _decoded(samples, catalogue, settings):
        if isinstance(made, Bad) and made.reason in _MAY_PASS:
            again.append(sample)
        else:
            yield sample, video, made
    yield from _decoded(again, catalogue, settings)


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
                shape = cut(settings, sample.view)
                video = torch.empty((1, 3, shape.frames, shape.height, shape.width), dtype=torch.uint8)
                ahead.append((sample, video, pool.submit([_job(sample, catalogue, settings)], video.numpy())))
            if not ahead:
                return
            sample, video, future = ahead.popleft()
            yield sample, video[0], future.result()[0]
    finally:
        pool.close()


def _job(sample: Sample, catalogue: Catalogue, settings: DataSettings) -> Job:
    """What the loader would ask for this clip, except that chance depends on its content alone."""
    shape = cut(settings, sample.view)
    return job_of(
        catalogue,
        sample.view.row,
        settings,
        frames=shape.frames,
        fps=shape.fps,
        crop=(shape.height, shape.width),
        draw=(0, 0, "clip"),
        key=sample.latent,
    )


def encode_texts(
    samples: Sequence[Sample], *, load: Callable[[], TextEncoder], cache: Cache, world: World, say: Say
) -> None:
    """Encode the captions that are missing in the cache, each rank its share; at the end every rank has all.

    Args:
        load: the encoder, which is large and only loaded where there is something to encode.

    Raises:
        CutroomError: what other ranks encoded is not to be seen here.
    """
    captions = {sample.text: sample.caption for sample in samples if sample.text is not None}
    missing = cache.missing(captions)
    if missing and world.is_first:
        say(f"encoding {len(missing)} captions; {len(captions) - len(missing)} kept")
    share = [key for key in missing if _is_mine(key, world)]
    if share:
        encoder = load()
        encoder.encoder.to(world.device)
        for start in range(0, len(share), _FILE_ENTRIES):
            done: dict[str, tuple[Tensor]] = {}
            for at in range(start, min(start + _FILE_ENTRIES, len(share)), _TEXTS):
                keys = share[at : min(at + _TEXTS, start + _FILE_ENTRIES)]
                full = keys + keys[-1:] * (_TEXTS - len(keys))  # always as many: see ``LatentEncoder._encode``
                with warnings.catch_warnings():
                    # How many captions are too long was said before.
                    warnings.filterwarnings("ignore", message=r".* texts have more than .* tokens")
                    made = encoder([captions[key] for key in full])
                done |= {key: (each.cpu(),) for key, each in zip(keys, made, strict=False)}
            cache.write(done)
        encoder.encoder.to("cpu")
    world.wait()
    cache.refresh()
    _check_complete(len(cache.missing(captions)), "captions", cache)


def scaling_factor(samples: Sequence[Sample], cache: Cache) -> float:
    """One over the standard deviation of the samples' latents about the mean of each channel, to four digits.

    A constant is no signal: were the channels' means counted, a VAE of one's own, whose means are not zero, would have
    its signal drowned by noise at most timesteps. Measured on some of the samples, always the same ones.
    """
    keys = sorted({sample.latent for sample in samples})
    if not keys:
        raise CutroomError("there are no latents to measure the scaling factor by")
    means, squares = [], []  # of each sample's channels
    for key in keys[:: -(-len(keys) // _MEASURED)]:
        mean, std = (part.double().flatten(1) for part in cache.read(key))
        means.append(mean.mean(1))
        squares.append((mean.square() + std.square()).mean(1))
    spread = float((torch.stack(squares).mean(0) - torch.stack(means).mean(0).square()).mean())
    if not math.isfinite(spread):
        raise CutroomError("some latents are no numbers: try vae.precision fp32")
    if not spread > 0:
        raise CutroomError("all latents are the same: there is nothing to learn, and no scale")
    return float(f"{spread**-0.5:.4g}")


__all__ = ["LatentEncoder", "digest_of", "encode_latents", "encode_texts", "scaling_factor"]
