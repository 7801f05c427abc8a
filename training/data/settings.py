"""What training reads, as written in YAML under ``data:``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from curation.errors import UsageError
from curation.rules import Rule
from training.settings import STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """Samples that share a shape, and so a batch.

    A clip goes to the largest and longest bucket that it fits, as in Open-Sora: it has at least ``frames`` frames (at
    ``fps``), and the part of its picture that fills the bucket has at least ``min_pixels`` of the bucket's pixels.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    frames: Annotated[int, Ge(1)]
    height: Annotated[int, Ge(1)]
    width: Annotated[int, Ge(1)]
    fps: Annotated[float, Gt(0)] | None = None  # frames a second, picked by time; null takes each frame as it comes
    batch_size: Annotated[int, Ge(1)] = 1
    keep: Annotated[float, Ge(0), Le(1)] = 1.0  # share of the clips that it takes; the others try the next bucket

    def __str__(self) -> str:
        rate = f"@{self.fps:g}" if self.fps else ""
        return f"{self.frames}x{self.height}x{self.width}{rate}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which samples training reads, and how they are cut and batched.

    Attributes:
        shards: what ``shards.read.find_shards`` takes.
        buckets: shapes of batches.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    shards: str | Annotated[list[str], Len(1)]
    buckets: Annotated[list[Bucket], Len(1)]
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05  # share of the videos that are not trained on, to judge by
    seed: int = 0
    keep: dict[str, Rule] = dataclasses.field(default_factory=dict)  # rules on the scores in the clips' rows
    captions: Literal["optional", "required"] = "optional"  # required leaves out samples without one
    # Share of the batches that are single frames, drawn from the clips of the same bucket: 0.2 is one batch of five.
    images: Annotated[float, Ge(0), Le(0.9)] = 0.0
    image_batch_size: Annotated[int, Ge(1)] | None = None  # null: as many frames as the bucket has clips
    min_pixels: Annotated[float, Gt(0), Le(1)] = 0.8  # of a bucket's pixels that the clip itself must have
    crop: Literal["random", "center"] = "random"
    zoom: Annotated[float, Ge(1)] = 1.0  # the picture is scaled to between just covering the bucket and so much larger
    flip: Annotated[float, Ge(0), Le(1)] = 0.0  # share that is mirrored; captions that say left or right do not turn
    shuffle: bool = True
    window: Annotated[int, Ge(1)] = 8  # shards that are mixed at a time; reading stays near within them
    group: Annotated[int, Ge(1)] = 1  # batches of one bucket that follow each other; the world size balances ranks
    # What becomes of the last samples of a bucket, and of a batch with a bad sample. allow: the batch is short. fill:
    # the samples that follow in the bucket fill it (again), so that all batches have one shape.
    short: Literal["allow", "fill"] = "allow"
    decoder: Literal["auto", "decord", "pyav"] = "auto"  # auto: pyav; see training.data.spans
    workers: Annotated[int, Ge(0)] = 2  # child processes that decode; 0 decodes in this one, unguarded
    prefetch: Annotated[int, Ge(1)] = 4  # batches in memory or in work
    stall_s: Annotated[float, Gt(0)] = 60.0  # a decoder without an answer for so long costs its sample
    max_bad: Annotated[float, Ge(0), Le(1)] = 0.05  # share of bad samples beyond which training stops
    bad_at_least: Annotated[int, Ge(1)] = 10  # so many are borne whatever their share
    cache: str | None = None  # a folder for catalogues of shards; null reads the headers at each start

    def check(self) -> None:
        """What the types cannot say.

        Raises:
            UsageError: the settings do not go together.
        """
        if not self.buckets or not self.shards:
            raise UsageError("shards and buckets: name at least one of each")
        seen: set[str] = set()
        for bucket in self.buckets:
            if str(bucket) in seen:
                raise UsageError(f"buckets: {bucket} stands there twice; remove one")
            seen.add(str(bucket))

    @property
    def decides(self) -> dict[str, Any]:
        """What the order and the cut of samples depend on, besides the samples: a resumed run must not change it."""
        operational = {"shards", "workers", "prefetch", "stall_s", "max_bad", "bad_at_least", "cache"}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in operational}
