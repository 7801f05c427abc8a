"""Which clips show the same as another one, and which of them is the best.

The hash is that of ``filters.video_hash``; ``filters.neighbours`` says which clips to compare and ``filters.alignment``
how alike they are.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Gt, Le

from curation.stage import TableStage
from filters.alignment import likeness
from filters.neighbours import candidates
from filters.video_hash import Unpacked, unpack


class Link(NamedTuple):
    """Two clips that are alike, the better one and another; of each, how much is in the other, 0..1."""

    better: int
    other: int
    better_in_other: float
    other_in_better: float


@dataclasses.dataclass(kw_only=True)
class Duplicates(TableStage):
    """Find copies among all clips by their ``video_hash`` and name the one to keep.

    Writes:
        duplicate_of: ``clip_id`` of the copy to keep; null for a clip that is the best of its kind or the only one. It
            is never a duplicate itself.
        duplicate_score: how alike the two are, 0..1: the correlation of what they show, over time and coefficients, at
            their best alignment, times the share of this clip that the other one contains. 0 for a clip that is no
            duplicate; unknown where there is no hash.

    Copies are found whatever their encoding, size, frame rate and brightness, with a logo, cropped or trimmed a little,
    in a mirror, or as a part of a longer clip. What runs backwards is no copy, and neither are the next seconds of the
    same shot: both show the same things, but they change differently. Where nothing changes, the picture alone decides:
    two clips of the same slide or of an empty room are copies.

    The best copy is the one with the most pixels, then with the most bits a second (of its file), then the longest,
    then the first by ``clip_id``; but a clip that is contained in a longer one goes, whatever its quality. A clip that
    a rule has rejected already (seen only with ``score_rejected``) is never the one to keep for one that is kept.
    """

    name: ClassVar[str] = "duplicates"
    reads: ClassVar[tuple[str, ...]] = (
        "video_hash", "clip_id", "status", "width", "height", "bit_rate", "duration_s",
    )  # fmt: skip
    writes: ClassVar[pa.Schema] = pa.schema([("duplicate_of", pa.string()), ("duplicate_score", pa.float32())])

    # What counts as a copy: which one is to be kept depends on it, so no rule can decide it afterwards. Of real clips,
    # copies reach 0.9 in the median and clips that are none 0.7 at most (benchmarks/duplicates.py).
    alike: Annotated[float, Gt(0), Le(1)] = 0.75

    def process(self, clips: pa.Table) -> pa.Table:
        ranked = best_first(clips)
        hashes = clips["video_hash"].take(ranked)
        known = np.flatnonzero(hashes.is_valid().to_numpy())
        hashes, ids = hashes.take(known), clips["clip_id"].take(ranked).take(known).to_pylist()
        num_kept = clips["status"].take(ranked).take(known).to_pylist().count("kept")
        found = originals(links(hashes, self.alike), self.alike, num_kept=num_kept)
        of: list[str | None] = [None] * clips.num_rows
        score: list[float | None] = [None] * clips.num_rows
        for i, place in enumerate(np.asarray(ranked)[known].tolist()):
            original = found.get(i)
            of[place] = ids[original[0]] if original else None
            score[place] = original[1] if original else 0.0
        return pa.table([pa.array(of, pa.string()), pa.array(score, pa.float32())], schema=self.writes)


def best_first(clips: pa.Table) -> np.ndarray:
    """Positions of the clips, the best copy first: kept ones, then by size, bits, length and id."""
    columns = {name: clips[name].combine_chunks() for name in ("bit_rate", "duration_s", "clip_id")}
    columns["kept"] = pc.equal(clips["status"], "kept")
    columns["pixels"] = pc.multiply(clips["width"].cast(pa.int64()), clips["height"].cast(pa.int64()))
    keys = [("kept", "descending"), ("pixels", "descending"), ("bit_rate", "descending"), ("duration_s", "descending")]
    return pc.sort_indices(pa.table(columns), sort_keys=[*keys, ("clip_id", "ascending")]).to_numpy()


def links(hashes: pa.ChunkedArray, alike: float) -> list[Link]:
    """The pairs of clips of which one is contained in the other; hashes, best first, without nulls."""

    @functools.lru_cache(maxsize=1024)
    def numbers(place: int) -> Unpacked:
        return unpack(hashes[place].as_py())

    found = []
    for other, better, mirrored in candidates(hashes).tolist():
        value, shared, _ = likeness(numbers(other), numbers(better), mirrored=bool(mirrored))
        # What lies between the last step and the end of a clip is not known to be missing.
        shares = [min(1.0, (shared + 1) / len(numbers(place).change)) for place in (better, other)]
        if value * max(shares) >= alike:
            found.append(Link(better, other, value * shares[0], value * shares[1]))
    return found


def originals(found: list[Link], alike: float, *, num_kept: int) -> dict[int, tuple[int, float]]:
    """Of each clip that is a copy: the one to keep, and how alike they are. Positions are ranks, the best first.

    Clips are looked at from the best to the worst, and a clip that is contained in one that is kept so far goes. So no
    clip goes because of one that goes itself, unless that one is part of a longer, worse clip, which stands for both.
    The first ``num_kept`` have passed all rules so far; none of them goes because of one that has not.
    """
    by_other: dict[int, list[Link]] = {}
    for link in found:
        by_other.setdefault(link.other, []).append(link)
    original: dict[int, tuple[int, float]] = {}
    for other in sorted(by_other):
        kept = [link for link in by_other[other] if link.better not in original]
        fitting = [link for link in kept if link.other_in_better >= alike]
        if fitting:
            best = min(fitting)
            original[other] = best.better, best.other_in_better
            continue
        for link in kept:
            may_go = other < num_kept or link.better >= num_kept
            if may_go and link.better_in_other >= alike:
                original[link.better] = other, link.better_in_other
    return {place: _stands_for(place, original) for place in sorted(original)}


def _stands_for(place: int, original: dict[int, tuple[int, float]]) -> tuple[int, float]:
    """The last in a chain of originals; how alike, at least, any two neighbours in it are."""
    value = 1.0
    while place in original:
        place, alike = original[place]
        value = min(value, alike)
    return place, value
