"""Which clips show the same things, though not the same pictures: near-duplicates by their embeddings.

After SemDeDup (Abbas et al. 2023, https://arxiv.org/abs/2303.09540): buckets by k-means, and only clips of like buckets
are compared. Two things differ. A clip is compared with those of its nearest buckets and not with its own bucket only,
which finds pairs that a border divides; and it goes only because of a clip that stays, so that no chain of small steps
takes away what nothing that stays is like.

Vectors are read from the disk as they are needed. What is in memory: a sample for k-means, a block of clips, and the
clips of a bucket that stay; of all clips, only positions.

Suffixes in this file: N clips, the best copy first; D dimensions; B clips of a block; C buckets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from annotated_types import Gt, Le

from curation.stage import TableStage
from curation.table import read_apart
from filters.duplicates import best_first

_FEW = 32_768  # clips that are all compared with each other, which takes seconds
_NEAREST = 16  # buckets that a clip is compared with; of pairs at the very limit 1% of the hardest vectors is missed
_SAMPLE, _SAMPLE_BYTES = 32, 256 << 20  # clips for each bucket that k-means looks at, and the most memory for all
_ROUNDS = 3  # of k-means; more find no more pairs
_BLOCK, _CHUNK, _RUN = 8192, 2048, 512  # clips at once: of those that ask, of those they find, of those ranked by turns
_PAIRS = 4096  # cosines that are computed exactly at once
_ROUNDING = 1e-4  # more than what float32 is off by
_NONE = np.iinfo(np.int64).max  # no better clip that a clip is alike to


@dataclasses.dataclass(kw_only=True)
class SemanticDuplicates(TableStage):
    """Group the clips whose ``embedding`` is nearly that of a better one, and name the one to keep.

    Writes:
        semantic_duplicate_of: ``clip_id`` of the clip to keep; null for one that is the best of its kind or the only
            one. It is never a duplicate itself.
        semantic_duplicate_score: cosine of the two embeddings, ``alike``..1. 0 for a clip that is no duplicate; unknown
            where there is no embedding.

    Clips are taken from the best to the worst, in the order of ``duplicates``: the most pixels, then the most bits a
    second, then the longest, then the first by ``clip_id``. One that is alike to a clip that stays goes, and the best
    of those is named; any other stays. A clip that a rule has rejected already is never the one to keep for one that
    is kept.

    It finds what ``duplicates`` must not: another take of the same scene, the next seconds of the same shot, a second
    film of the same place. Whether such clips are too many is a question of taste, so it is a stage and a rule of its
    own. Up to 32,768 clips it compares all with each other; of more, each with those in the 16 of about
    ``sqrt(16 N)`` buckets that are nearest to it. A file of the size of all embeddings lies beside them meanwhile.

    Args:
        alike: cosine from which on two clips are near-duplicates. It decides who stays, so no rule can afterwards. It
            depends on the encoder, and has not been calibrated: look at some pairs of your own footage.
    """

    alike: Annotated[float, Gt(0), Le(1)] = 0.95

    name: ClassVar[str] = "semantic_duplicates"
    reads: ClassVar[tuple[str, ...]] = (
        "embedding", "clip_id", "status", "width", "height", "bit_rate", "duration_s",
    )  # fmt: skip
    writes: ClassVar[pa.Schema] = pa.schema(
        [("semantic_duplicate_of", pa.string()), ("semantic_duplicate_score", pa.float32())]
    )

    def process(self, clips: pa.Table) -> pa.Table:
        ranked = best_first(clips)
        ids = clips["clip_id"].take(ranked)
        of: list[str | None] = [None] * clips.num_rows
        score: list[float | None] = [None] * clips.num_rows
        with unit_vectors(clips["embedding"].take(ranked), ids) as (vectors, known):
            found = originals(vectors, self.alike)
        for i in np.flatnonzero(known).tolist():
            if i in found:
                of[ranked[i]], score[ranked[i]] = ids[found[i][0]].as_py(), found[i][1]
            else:
                score[ranked[i]] = 0.0
        return pa.table([pa.array(of, pa.string()), pa.array(score, pa.float32())], schema=self.writes)


@contextlib.contextmanager
def unit_vectors(files: pa.ChunkedArray, ids: pa.ChunkedArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The embeddings of clips in their order, made to length 1: float32 N D on the disk, 0 where unknown; N, if known.

    They lie beside the embeddings, where there is room for their like; the file has no name, and goes with the process.
    """
    known = np.zeros(len(ids), bool)
    first = next((path for path in files.to_pylist() if path), None)
    if first is None:
        yield np.zeros((len(ids), 1), np.float32), known
        return
    with tempfile.TemporaryFile(dir=Path(first).parent) as file:
        size = 1
        for places, values in read_apart("embedding", files, ids):
            size = values.shape[1]
            lengths = np.sqrt(np.square(values, dtype=np.float64).sum(axis=1, keepdims=True))
            good = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
            units = (values[good] / lengths[good]).astype(np.float32)
            # Written and not assigned to a map: a disk that is full raises then, and does not kill the process.
            for place, unit in zip(places[good].tolist(), units, strict=True):
                file.seek(4 * size * place)
                file.write(unit.tobytes())
            known[places[good]] = True
        file.truncate(4 * size * len(ids))
        file.flush()
        yield np.memmap(file, np.float32, "r", shape=(len(ids), size)), known


def originals(vectors: np.ndarray, alike: float) -> dict[int, tuple[int, float]]:
    """Of each clip that goes: the one to keep, and their cosine. Vectors N D of length 1, or 0 where unknown."""
    centres = bucket_centres(vectors)
    stay: list[list[int]] = [[] for _ in centres]
    found: dict[int, tuple[int, float]] = {}
    for first in range(0, len(vectors), _BLOCK):
        block = np.array(vectors[first : first + _BLOCK])
        nearest = np.concatenate([_nearest(part, centres) for part in _chunks(block, _CHUNK)])
        to = np.full(len(block), _NONE)  # B: the clip to keep
        _ask_buckets(block, nearest, stay, vectors, alike, to)
        for i in _ask_each_other(block, first, alike, to):
            stay[nearest[i, 0]].append(first + i)
        for some in _chunks(np.flatnonzero(to < _NONE), _PAIRS):
            cosines = np.minimum(_cosines(block[some], vectors[to[some]]), 1.0)
            pairs = zip(to[some].tolist(), cosines.tolist(), strict=True)
            found.update(zip((first + some).tolist(), pairs, strict=True))
    return found


def bucket_centres(vectors: np.ndarray) -> np.ndarray:
    """Directions of buckets, C D, by k-means on a sample."""
    count, size = vectors.shape
    if count <= _FEW:
        return np.zeros((1, size), np.float32)
    buckets = math.isqrt(_NEAREST * count)
    most = min(max(buckets, min(_SAMPLE * buckets, _SAMPLE_BYTES // (4 * size))), count)
    draw = np.random.default_rng(0)
    sample = np.unique(vectors[np.sort(draw.permutation(count)[:most])], axis=0)
    # In float64, where no two clips are as near to each other as rounding, which differs between machines, is coarse.
    centres = sample[np.sort(draw.permutation(len(sample))[:buckets])].astype(np.float64)
    for _ in range(_ROUNDS):
        own = np.concatenate([_nearest(part.astype(np.float64), centres)[:, 0] for part in _chunks(sample, _CHUNK)])
        order = np.argsort(own, kind="stable")
        filled, begins = np.unique(own[order], return_index=True)
        sums = np.add.reduceat(sample[order], begins, axis=0, dtype=np.float64)
        centres[filled] = sums / np.maximum(np.sqrt(np.square(sums).sum(axis=1, keepdims=True)), 1e-9)
    return centres.astype(np.float32)


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The buckets nearest to vectors B D: B _NEAREST (or all), the nearest first, the others in no order."""
    cosines = vectors @ centres.T
    kept = min(_NEAREST, len(centres))
    nearest = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept].copy()  # a view would hold all of it
    own, rows = cosines.argmax(axis=1), np.arange(len(vectors))
    place = (nearest == own[:, None]).argmax(axis=1)
    nearest[rows, place], nearest[:, 0] = nearest[:, 0].copy(), own
    return nearest


def _ask_buckets(
    block: np.ndarray, nearest: np.ndarray, stay: list[list[int]], vectors: np.ndarray, alike: float, to: np.ndarray
) -> None:
    """Find, of earlier blocks, the best clip that stays and that each of B is alike to."""
    order = np.argsort(nearest, axis=None, kind="stable")
    ends = np.searchsorted(nearest.ravel()[order], np.arange(len(stay) + 1))
    for bucket, members in enumerate(stay):
        asking = order[ends[bucket] : ends[bucket + 1]] // nearest.shape[1]
        for some in _chunks(np.array(members if len(asking) else [], np.int64), _CHUNK):
            i, j = _alike(block[asking], vectors[some], alike)
            np.minimum.at(to, asking[i], some[j])


def _ask_each_other(block: np.ndarray, first: int, alike: float, to: np.ndarray) -> list[int]:
    """Find it among themselves for those of B that have none yet, from the best to the worst; give those that stay."""
    stay: list[int] = []
    for run in _chunks(np.flatnonzero(to == _NONE), _RUN):
        for some in _chunks(np.array(stay, np.int64), _CHUNK):
            i, j = _alike(block[run], block[some], alike)
            np.minimum.at(to, run[i], first + some[j])
        left = run[to[run] == _NONE]
        near = np.tril(block[left] @ block[left].T >= alike - _ROUNDING, -1)
        for i, row in zip(left.tolist(), near, strict=True):
            better = left[row]
            better = better[to[better] == _NONE]
            fits = better[_cosines(block[i : i + 1], block[better]) >= alike]
            if len(fits):
                to[i] = first + fits[0]
            else:
                stay.append(i)
    return stay


def _alike(some: np.ndarray, others: np.ndarray, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pairs of vectors whose cosine is at least ``alike``."""
    pairs = np.argwhere(some @ others.T >= alike - _ROUNDING)
    fits = [_cosines(some[part[:, 0]], others[part[:, 1]]) >= alike for part in _chunks(pairs, _PAIRS)]
    i, j = pairs[np.concatenate([np.empty(0, bool), *fits])].T
    return i, j


def _cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of pairs of vectors of length 1, row by row. Not by a matrix product: its last bits depend on the machine."""
    return np.asarray((some.astype(np.float64) * others).sum(axis=1))


def _chunks(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (values[low : low + size] for low in range(0, len(values), size))
