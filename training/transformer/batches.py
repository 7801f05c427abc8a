"""The batches of the transformer's training: packs or batches of cached latents, in one order for the whole world."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from curation.errors import UsageError
from training.transformer.cache import Cache
from training.transformer.packing import Groups
from training.transformer.samples import Sample

_STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A sample's tensors, as they are kept: not scaled, nothing drawn.

    Attributes:
        mean, std: of the posterior, (C, T, H, W) each.
        text: (L, D); None without a caption.
        image: mean and deviation of the first frame's posterior, (C, 1, H, W) each, for image-to-video.
    """

    mean: Tensor
    std: Tensor
    text: Tensor | None
    image: tuple[Tensor, Tensor] | None
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class LatentBatch:
    """Samples that are computed together.

    Attributes:
        keys: of the samples: the names of their latents.
        samples: of one shape, unless ``packed``.
        indices: of each sample among all that the step has, over ranks and batches.
        total: how many samples the step has.
        packed: one sequence, instead of a row for each.
    """

    keys: list[str]
    samples: list[Loaded]
    indices: list[int]
    total: int
    packed: bool


class Kept:
    """The two caches, and how a sample is read from them."""

    def __init__(self, latents: Cache, texts: Cache) -> None:
        self.latents, self.texts = latents, texts

    def load(self, sample: Sample) -> Loaded:
        """A sample's tensors."""
        mean, std = self.latents.read(sample.latent)
        text = self.texts.read(sample.text)[0] if sample.text else None
        image = self.latents.read(sample.image) if sample.image else None
        return Loaded(mean, std, text, (image[0], image[1]) if image else None, sample.caption)


class LatentBatches:
    """Batches for one rank, for ever.

    The order is global: rank r of R computes groups r, r + R, and so on of the epochs laid end to end, and a step takes
    ``accumulate`` of them on each rank. So the state is a place in that order, and good for any number of ranks; with
    as many groups in a step, training goes on bit for bit.

    Args:
        samples: all there are.
        plan: the groups of an epoch, as places in ``samples``; a function of the epoch alone.
        decides: what the plan is made of; a state of another one is refused.
        accumulate: groups of each rank in a step.
        prefetch: groups that are read ahead.
    """

    num_bad = 0  # what cannot be read is found, and said, when it is encoded

    def __init__(
        self,
        samples: Sequence[Sample],
        kept: Kept,
        *,
        plan: Callable[[int], Groups],
        packed: bool,
        decides: Any,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        prefetch: int = 4,
    ) -> None:
        self._samples, self._kept, self._plan, self._packed = samples, kept, plan, packed
        self._rank, self._world, self._accumulate, self._prefetch = rank, world, accumulate, max(1, prefetch)
        self._plans: dict[int, Groups] = {}
        self._position = (0, 0)  # epoch and group that rank 0 computes next
        names = [[sample.latent, sample.text, sample.image] for sample in samples]
        text = json.dumps([decides, names]).encode()
        self._decides = hashlib.blake2b(text, digest_size=12).hexdigest()

    def groups(self, epoch: int) -> Groups:
        """The groups of an epoch. The two that were asked for last are kept."""
        if epoch not in self._plans:
            while len(self._plans) > 1:
                del self._plans[min(self._plans)]
            self._plans[epoch] = self._plan(epoch)
            if not self._plans[epoch]:
                raise UsageError("there is nothing to train on: no sample has latents")
        return self._plans[epoch]

    def _forward(self, epoch: int, index: int, count: int) -> tuple[int, int]:
        """The place ``count`` groups further in the order of all epochs."""
        index += count
        while index >= (length := len(self.groups(epoch))):
            epoch, index = epoch + 1, index - length
        return epoch, index

    def _step(self, epoch: int, index: int) -> list[tuple[list[int], int, int]]:
        """This rank's groups in the step that begins at a place: samples, their offset in the step, and its total."""
        everything = []
        for _ in range(self._world * self._accumulate):
            everything.append(self.groups(epoch)[index])
            epoch, index = self._forward(epoch, index, 1)
        offsets = [0]
        for group in everything:
            offsets.append(offsets[-1] + len(group))
        return [(everything[at], offsets[at], offsets[-1]) for at in range(self._rank, len(everything), self._world)]

    def __iter__(self) -> Iterator[LatentBatch]:
        """Batches from where the state is, which is the beginning of a step."""
        place = self._position
        pending: deque[Future[LatentBatch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="latents") as pool:
            try:
                while True:
                    while len(pending) < self._prefetch:
                        pending += [pool.submit(self._load, *each) for each in self._step(*place)]
                        place = self._forward(*place, self._world * self._accumulate)
                    batch = pending.popleft().result()
                    self._position = self._forward(*self._position, self._world)
                    yield batch
            finally:
                for future in pending:
                    future.cancel()

    def _load(self, group: list[int], offset: int, total: int) -> LatentBatch:
        samples = [self._samples[at] for at in group]
        return LatentBatch(
            keys=[sample.latent for sample in samples],
            samples=[self._kept.load(sample) for sample in samples],
            indices=[*range(offset, offset + len(group))],
            total=total,
            packed=self._packed,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where every rank stands after a step; the same on all of them."""
        epoch, index = self._position
        return {"version": _STATE_VERSION, "epoch": epoch, "group": index, "decides": self._decides}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was saved; with any number of ranks.

        Raises:
            UsageError: the samples, or what decides their order, are others.
        """
        if state.get("version") != _STATE_VERSION:
            raise UsageError(f"the batches' state is of version {state.get('version')!r}, not {_STATE_VERSION}")
        if state["decides"] != self._decides:
            raise UsageError(
                "this training was begun on other samples, or with other buckets, packs or seed; "
                "put them back, or start anew from the checkpoint's weights (model.start)"
            )
        self._position = int(state["epoch"]), int(state["group"])
