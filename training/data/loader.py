"""The loader: batches of an endless run of epochs, each sample of an epoch once, whatever the number of ranks."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.errors import UsageError
from shards.bytes import file_name
from shards.read import Catalogue, read_catalogue
from training.data.decode import Bad, Crop, Job, Sample, job_of
from training.data.faults import Faults
from training.data.plan import EpochPlan, Planned
from training.data.pool import Pool
from training.data.settings import Bucket, DataSettings

if TYPE_CHECKING:
    import torch

_STATE_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket. B is the batch size, C = 3, T frames of H x W.

    Attributes:
        video: B C T H W uint8, RGB, 0..255; ``video.float() / 127.5 - 1`` is what models want, made on their device.
        captions, keys: of the samples.
        rows: the clips' rows (the json beside each video), empty where there is none.
        times_s: float64 B T, presentation seconds in the clip at which each frame is shown.
        crops: what was cut out of each picture.
        bucket: the shape; of images it is the bucket whose clips they are from.
        is_image: T = 1, drawn from clips.
        epoch, index: place in the global order of batches.
        repeats: how many samples, at the end, are read once more to fill the batch.
        is_padding: the epochs are over, and other ranks still read: the batch is there for collectives alone.
    """

    video: torch.Tensor
    captions: list[str]
    keys: list[str]
    rows: list[dict[str, Any]]
    times_s: np.ndarray
    crops: list[Crop]
    bucket: Bucket
    is_image: bool
    epoch: int
    index: int
    repeats: int = 0
    is_padding: bool = False

    def __len__(self) -> int:
        return len(self.keys)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A batch in work."""

    epoch: int
    index: int
    planned: Planned
    video: torch.Tensor
    samples: list[Future[list[Sample | Bad]]]
    is_padding: bool
    given_up: frozenset[int] = frozenset()  # lanes that it stands in for


class Loader:
    """Batches for one rank, in an order that seed, settings and shards alone decide.

    The order is global: of the batches of all epochs, laid end to end, rank r of R reads r, r + R, and so on. So all
    ranks make the same number of steps, also where an epoch ends between two ranks, and a state that is saved by any
    rank of any world is good for any rank of any other.

    A sample that cannot be read is counted and named in ``faults``, once. Its batch is short; one that loses all its
    samples, and with ``short: fill`` every one, takes those that follow in the bucket (``Batch.repeats``). Where none
    of them can be read, a batch of another bucket is read again.

    Args:
        settings: what to read.
        rank, world: which share of the batches is this process's.
        workers: child processes; None takes the settings'.
        epochs: how many; None never ends. With a number, the last step may have ranks without a batch: they get the
            last one again, as ``is_padding``.
        catalogue: of the shards, where it has been read already.

    Raises:
        UsageError: the settings cannot be met by these shards, or on this machine.
        BadDataError: while reading, when more samples are bad than the settings bear.
    """

    def __init__(
        self,
        settings: DataSettings,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        epochs: int | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        settings.check()
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} is none of a world of {world}")
        if settings.decoder == "decord" and importlib.util.find_spec("decord") is None:
            raise UsageError("decord is not installed here: pip install decord, or leave `decoder` out")
        self.settings, self._rank, self._world, self._epochs = settings, rank, world, epochs
        self._catalogue = catalogue if catalogue is not None else open_catalogue(settings)
        self.faults = Faults(settings.max_bad, settings.bad_at_least)
        self.faults.note(self._catalogue)
        self._plans: dict[int, EpochPlan] = {}
        self._position = (0, 0)  # epoch and global batch that rank 0 reads next
        self._failed: set[int] = set()  # samples that could not be read the last time
        if not len(self.plan(0)):
            raise UsageError(f"no sample fits a bucket: {self.plan(0).assignment.dropped()}")
        self._assigned = hashlib.blake2b(self.plan(0).assignment.bucket.tobytes(), digest_size=12).hexdigest()
        workers = settings.workers if workers is None else workers
        self._share = max(1, workers)  # parts of a batch that are done at a time
        self._pool = Pool(workers=workers, stall_s=settings.stall_s)

    def plan(self, epoch: int) -> EpochPlan:
        """The batches of an epoch. Two are kept: reading ahead goes over the end of one."""
        if epoch not in self._plans:
            like = next(iter(self._plans.values()), None)
            while len(self._plans) > 1:
                del self._plans[min(self._plans)]
            self._plans[epoch] = EpochPlan(self._catalogue, self.settings, epoch, like=like)
        return self._plans[epoch]

    @property
    def num_bad(self) -> int:
        """Samples that this rank could not read so far."""
        return self.faults.num_bad

    def steps(self, epoch: int = 0) -> int:
        """Steps of every rank in an epoch that starts at its first batch."""
        return -(-len(self.plan(epoch)) // self._world)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from where the state is; they are made ahead, but count only once they are handed out."""
        ahead = self._forward(*self._position, self._rank)
        steps, pending = self._position, collections.deque[_Pending]()
        try:
            while True:
                while len(pending) < self.settings.prefetch and not self._is_over(steps):
                    pending.append(self._submit(*ahead))
                    ahead, steps = self._forward(*ahead, self._world), self._forward(*steps, self._world)
                if not pending:
                    return
                batch = self._finish(pending.popleft())
                self._position = self._forward(*self._position, self._world)
                yield batch
        finally:
            for one in pending:
                for sample in one.samples:
                    sample.cancel()

    def _is_over(self, position: tuple[int, int]) -> bool:
        return self._epochs is not None and position[0] >= self._epochs

    def _forward(self, epoch: int, index: int, count: int) -> tuple[int, int]:
        """The place ``count`` batches further in the order of all epochs."""
        if self._is_over((epoch, index)):
            return epoch, 0
        index += count
        while index >= (length := len(self.plan(epoch))):
            if self._is_over((epoch + 1, 0)):
                return epoch + 1, 0
            if not length and not len(self.plan(epoch + 1)):
                raise UsageError(f"epochs {epoch} and {epoch + 1} have no batches; is every bucket's keep near 0?")
            epoch, index = epoch + 1, index - length
        return epoch, index

    def _submit(self, epoch: int, index: int, given_up: frozenset[int] = frozenset()) -> _Pending:
        import torch

        is_padding = self._is_over((epoch, index))
        if is_padding:
            epoch, index = epoch - 1, len(self.plan(epoch - 1)) - 1
        planned = self.plan(epoch)[index]
        bucket = self.settings.buckets[planned.bucket]
        frames = 1 if planned.is_image else bucket.frames
        video = torch.empty((len(planned.samples), 3, frames, bucket.height, bucket.width), dtype=torch.uint8)
        jobs = [self._job(int(sample), epoch, index, planned) for sample in planned.samples]
        each = -(-len(jobs) // self._share)
        samples = [
            self._pool.submit(jobs[i : i + each], video[i : i + each].numpy()) for i in range(0, len(jobs), each)
        ]
        return _Pending(epoch, index, planned, video, samples, is_padding, given_up)

    def _job(self, sample: int, epoch: int, index: int, planned: Planned) -> Job:
        bucket, settings = self.settings.buckets[planned.bucket], self.settings
        return job_of(
            self._catalogue,
            sample,
            settings,
            frames=1 if planned.is_image else bucket.frames,
            fps=None if planned.is_image else bucket.fps,
            crop=(bucket.height, bucket.width),
            draw=(settings.seed, epoch, f"image {index}" if planned.is_image else "clip"),
        )

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the samples of a batch, count those that are bad, and put others in their place where need be."""
        planned, good = pending.planned, dict[int, tuple[Sample, str]]()
        numbers = [*planned.samples.tolist()]
        made = [one for future in pending.samples for one in future.result()]
        for place, one in enumerate(made):
            self._take(place, numbers[place], one, good)
        repeats = sum(place >= len(numbers) - planned.repeats for place in good)
        following = (sample for sample in planned.following.tolist() if sample not in self._failed)
        while len(good) < (len(numbers) if self.settings.short == "fill" else 1):
            place = next(place for place in range(len(numbers)) if place not in good)
            if (sample := next(following, None)) is None:
                if not good:
                    return self._instead(pending)
                again = min(good)
                good[place], pending.video[place] = good[again], pending.video[again]
                repeats += 1
                continue
            job = self._job(sample, pending.epoch, pending.index, planned)
            (one,) = self._pool.submit([job], pending.video[place : place + 1].numpy()).result()
            repeats += self._take(place, sample, one, good)
        places = [place for place in good if place < len(numbers)]
        video = pending.video if places == [*range(len(numbers))] else pending.video[places]
        samples = [good[place] for place in places]
        return Batch(
            video=video,
            captions=[sample.caption for sample, _ in samples],
            keys=[key for _, key in samples],
            rows=[sample.row for sample, _ in samples],
            times_s=np.stack([sample.times_s for sample, _ in samples]),
            crops=[sample.crop for sample, _ in samples],
            bucket=self.settings.buckets[planned.bucket],
            is_image=planned.is_image,
            epoch=pending.epoch,
            index=pending.index,
            repeats=len(places) if pending.given_up else repeats,
            is_padding=pending.is_padding,
        )

    def _instead(self, pending: _Pending) -> Batch:
        """A batch of another bucket, again, where nothing of one can be read: a few clips end no training."""
        plan = self.plan(pending.epoch)
        given_up = pending.given_up | {plan.lane(pending.index)}
        if (index := plan.instead(pending.index, {*given_up})) is None:
            count = len(pending.planned.following)
            self.faults.stop(f"none of the {count} samples that follow could be read either")
        other = self._finish(self._submit(pending.epoch, index, given_up))
        return dataclasses.replace(other, index=pending.index, is_padding=pending.is_padding)

    def _take(self, place: int, number: int, made: Sample | Bad, good: dict[int, tuple[Sample, str]]) -> bool:
        key = self._catalogue.table["key"][number].as_py()
        if isinstance(made, Bad):
            if number in self._failed:  # it has been counted
                return False
            self._failed.add(number)
            shard = self._catalogue.shards[self._catalogue.table["shard"][number].as_py()]
            self.faults.bad(made.reason, f"{file_name(shard.url)}:{key}", made.why)
            return False
        self._failed.discard(number)
        self.faults.good()
        good[place] = made, key
        return True

    def state_dict(self) -> dict[str, Any]:
        """Where every rank stands after the batches that were handed out; the same on all of them."""
        epoch, batch = self._position
        return {"version": _STATE_VERSION, "epoch": epoch, "batch": batch, "decides": self._decides()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was saved; with any number of ranks and workers.

        Raises:
            UsageError: the samples, or the settings that decide their order and cut, are others.
        """
        if state.get("version") != _STATE_VERSION:
            raise UsageError(f"the loader's state is of version {state.get('version')!r}, not {_STATE_VERSION}")
        if state["decides"] != self._decides():
            raise UsageError(
                "the loader's state belongs to other shards or other data settings; "
                "put them back, or start anew from the checkpoint's weights"
            )
        self._position = int(state["epoch"]), int(state["batch"])

    def _decides(self) -> str:
        # What goes where hangs on captions and rows too, where rules read them.
        text = json.dumps([self._catalogue.fingerprint, self._assigned, self.settings.decides], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def pids(self) -> list[int]:
        """Process ids of the children that are not at work at this moment."""
        return self._pool.pids()

    def close(self) -> None:
        """End the child processes."""
        self._pool.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_catalogue(settings: DataSettings) -> Catalogue:
    """The samples of the settings' shards, with the columns that their rules ask for.

    Raises:
        UsageError: there are none.
    """
    return read_catalogue(settings.shards, cache=settings.cache, columns=settings.keep)
