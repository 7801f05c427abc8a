"""Duplicates among clips whose truth is known: what is done to a painted take, and which copy is the best."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from benchmarks.duplicates import changed, judged, pairs
from benchmarks.scenes import make_take
from filters.duplicates import Duplicates, Link, originals
from filters.neighbours import candidates
from filters.video_hash import FEWEST, Hashes, K, VideoHash, pack, unbarred, unpack

FPS = 8
SIZE = (192, 108)


def take(seed: int, seconds: float = 5.0) -> np.ndarray:
    """Grey frames T H W of a moving scene."""
    scene = make_take(np.random.default_rng([3, seed]), SIZE, count=int(seconds * FPS), fps=FPS)
    return np.stack([cv2.cvtColor(scene.frame(i), cv2.COLOR_BGR2GRAY) for i in range(len(scene))])


def hash_of(frames: np.ndarray, fps: float = FPS, start_s: float = 0.0) -> bytes | None:
    value: bytes | None = VideoHash().score(frames, start_s + np.arange(len(frames)) / fps)
    return value


def clips(hashes: list[bytes | None], **columns: list[object]) -> pa.Table:
    """A table as the stage reads it, of clips that differ in nothing but what is given."""
    count = len(hashes)
    rest = {"status": "kept", "width": 640, "height": 360, "bit_rate": 1e6, "duration_s": 5.0}
    values = {name: [value] * count for name, value in rest.items()} | columns
    return pa.table({"video_hash": pa.array(hashes, pa.binary()), "clip_id": [f"c{i}" for i in range(count)], **values})


def duplicates(table: pa.Table) -> list[tuple[str | None, float | None]]:
    done = Duplicates().process(table)
    return list(zip(done["duplicate_of"].to_pylist(), done["duplicate_score"].to_pylist(), strict=True))


def with_logo(frames: np.ndarray) -> np.ndarray:
    frames = frames.copy()
    frames[:, 8:22, 10:45] = 240
    return frames


def letterboxed(frames: np.ndarray) -> np.ndarray:
    return np.pad(frames, ((0, 0), (20, 20), (0, 0)))


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "darker": lambda frames: (frames * 0.7).astype(np.uint8),
    "brighter, lifted": lambda frames: np.clip(frames * 0.9 + 40, 0, 255).astype(np.uint8),
    "cropped": lambda frames: frames[:, 3:106, 6:188],
    "smaller": lambda frames: np.stack([cv2.resize(f, (64, 36), interpolation=cv2.INTER_AREA) for f in frames]),
    "logo": with_logo,
    "letterboxed": letterboxed,
    "start trimmed": lambda frames: frames[4:],
    "end trimmed": lambda frames: frames[:-4],
    "mirrored": lambda frames: frames[:, :, ::-1],
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_among_other_clips(kind: str) -> None:
    takes = [take(seed) for seed in range(8)]
    found = pairs([hash_of(t) for t in takes], [hash_of(COPIES[kind](t)) for t in takes])
    assert all(one == other for one, other in found)
    assert len(found) >= 7  # of 8


def test_what_runs_backwards_and_what_comes_next_is_no_copy() -> None:
    takes = [take(seed, seconds=10.0) for seed in range(8)]
    half = len(takes[0]) // 2
    assert pairs([hash_of(t[:half]) for t in takes], [hash_of(t[:half][::-1]) for t in takes]) == []
    assert pairs([hash_of(t[:half]) for t in takes], [hash_of(t[half:]) for t in takes]) == []


def test_the_rate_and_the_time_of_frames_do_not_matter() -> None:
    frames = take(1)
    found = duplicates(clips([hash_of(frames), hash_of(frames[::2], fps=FPS / 2, start_s=17.3)]))
    assert found[0] == (None, 0.0)
    assert found[1][0] == "c0"
    assert found[1][1] == pytest.approx(0.95, abs=0.05)


def test_black_and_very_short_clips_are_unknown_and_no_duplicates() -> None:
    black = np.full((40, 54, 96), 3, np.uint8)
    noisy = black + np.random.default_rng(0).integers(0, 3, black.shape, dtype=np.uint8)
    assert hash_of(black) is None
    assert hash_of(noisy) is None
    assert hash_of(take(0)[: 2 * (FEWEST - 1)]) is None
    assert hash_of(take(0)[:0]) is None
    assert duplicates(clips([None, hash_of(take(0)), None])) == [(None, None), (None, 0.0), (None, None)]
    assert duplicates(clips([])) == []


def test_where_nothing_moves_the_picture_decides() -> None:
    slides = [np.repeat(take(seed)[:1], 40, axis=0) for seed in range(3)]
    of = [found for found, _ in duplicates(clips([hash_of(slides[i]) for i in (0, 1, 0, 2, 1)]))]
    assert of == [None, None, "c0", None, "c1"]


def test_the_best_copy_is_kept_by_size_then_bits_then_length_then_id() -> None:
    one = hash_of(take(0))
    same = [one] * 3
    assert [of for of, _ in duplicates(clips(same, width=[640, 1920, 640]))] == ["c1", None, "c1"]
    assert [of for of, _ in duplicates(clips(same, bit_rate=[1e6, 2e6, 3e6]))] == ["c2", "c2", None]
    assert [of for of, _ in duplicates(clips(same, bit_rate=[None, 2e6, None]))] == ["c1", None, "c1"]
    assert [of for of, _ in duplicates(clips(same, duration_s=[5.0, 5.1, 5.0]))] == ["c1", None, "c1"]
    assert [of for of, _ in duplicates(clips(same))] == [None, "c0", "c0"]


def test_a_part_of_a_longer_clip_goes_whatever_its_quality() -> None:
    whole = take(0, seconds=8.0)
    table = clips([hash_of(whole), hash_of(whole[12:36])], width=[640, 1920], duration_s=[8.0, 3.0])
    assert [of for of, _ in duplicates(table)] == [None, "c0"]


def test_a_rejected_clip_is_never_kept_for_one_that_is_kept() -> None:
    table = clips([hash_of(take(0))] * 2, width=[1920, 640], status=["rejected", "kept"])
    assert [of for of, _ in duplicates(table)] == ["c1", None]


@pytest.mark.parametrize(
    ("status", "expected"),
    [(["rejected", "kept"], [None, None]), (["rejected"] * 2, [None, "c0"]), (["kept", "rejected"], [None, "c0"])],
    ids=["the whole", "both", "the part"],
)
def test_a_kept_part_stays_where_the_whole_is_rejected(status: list[str], expected: list[str | None]) -> None:
    whole = take(0, seconds=8.0)
    table = clips([hash_of(whole), hash_of(whole[12:36])], width=[640, 1920], duration_s=[8.0, 3.0], status=status)
    assert [of for of, _ in duplicates(table)] == expected


def test_neither_the_order_of_the_clips_nor_other_clips_matter() -> None:
    hashes = [hash_of(change(take(seed))) for seed in range(4) for change in COPIES.values()]
    table = clips(hashes, width=[320 + 17 * (i * 7 % 11) for i in range(len(hashes))])
    known = dict(zip(table["clip_id"].to_pylist(), duplicates(table), strict=True))
    order = np.random.default_rng(0).permutation(len(hashes))
    shuffled = table.take(pa.array(order))
    assert dict(zip(shuffled["clip_id"].to_pylist(), duplicates(shuffled), strict=True)) == known
    few = table.slice(0, len(COPIES))
    assert dict(zip(few["clip_id"].to_pylist(), duplicates(few), strict=True)).items() <= known.items()


def test_a_hundred_copies_have_one_original() -> None:
    frames = take(2)
    found = duplicates(clips([hash_of(frames[i % 3 :]) for i in range(100)]))
    assert [of for of, _ in found].count(None) == 1


def test_originals_are_no_duplicates_themselves() -> None:
    def link(better: int, other: int, up: float = 0.9, down: float = 0.9) -> Link:
        return Link(better, other, up, down)

    assert originals([link(0, 1), link(1, 2)], 0.75, num_kept=3) == {1: (0, 0.9)}  # 2 is like 1, which goes
    assert originals([link(0, 2), link(1, 2, down=0.95)], 0.75, num_kept=3) == {2: (0, 0.9)}  # the better of two
    assert originals([link(0, 1, up=0.8, down=0.4)], 0.75, num_kept=3) == {0: (1, 0.8)}  # 0 is a part of 1
    assert originals([link(0, 1), link(0, 2, up=0.8, down=0.4)], 0.75, num_kept=3) == {0: (2, 0.8), 1: (2, 0.8)}
    assert originals([link(0, 1, up=0.7, down=0.7)], 0.75, num_kept=3) == {}
    chain = [link(0, 1, up=0.8, down=0.4), link(1, 2, up=0.8, down=0.4)]  # each a part of the next
    assert originals(chain, 0.75, num_kept=3) == {0: (2, 0.8), 1: (2, 0.8)}
    assert originals(chain, 0.75, num_kept=2) == {0: (1, 0.8)}


def test_a_hash_is_read_as_it_was_packed() -> None:
    steps = np.random.default_rng(0).standard_normal((20, K)).astype(np.float32)
    steps /= np.sqrt(np.square(steps).sum(axis=1).mean())
    packed = pack(steps)
    assert len(packed) == 52 + 12 * 20
    read = unpack(packed)
    assert np.abs(read.mean + read.change - steps).max() < 0.06
    hashes = Hashes(pa.chunked_array([pa.array([b"", packed, packed], pa.binary()).slice(1)]))
    np.testing.assert_allclose(hashes.steps(1, 2), read.mean + read.change, atol=1e-6)
    np.testing.assert_allclose(hashes.at(np.array([1]), np.array([[3, 7]]))[0], (read.mean + read.change)[[3, 7]])


def test_bars_on_one_side_only_stay() -> None:
    frames = take(0)
    assert unbarred(letterboxed(frames)).shape == frames.shape
    beside = np.pad(frames, ((0, 0), (0, 0), (0, 60)))
    assert unbarred(beside).shape == beside.shape


def test_candidates_are_few_and_hold_the_copies() -> None:
    takes = [take(seed, seconds=4.0) for seed in range(40)]
    found = candidates(pa.chunked_array([pa.array([hash_of(t) for t in takes] + [hash_of(t[2:]) for t in takes])]))
    assert sum((i + 40, i, 0) in set(map(tuple, found.tolist())) for i in range(40)) >= 39
    assert len(found) < 120  # of 3160 pairs
    assert np.all(found[:, 1] < found[:, 0])


@pytest.mark.slow
def test_copies_survive_encoders(tmp_path: Path) -> None:
    videos = os.environ.get("CUTROOM_TEST_VIDEOS")
    hashes, taken = changed(8, Path(videos) if videos else None, tmp_path)
    assert (taken["real"], taken["painted"]) == ((6, 2) if videos else (0, 8))
    assert {len(found) for found in hashes.values()} == {8}
    _, total = judged(hashes)
    assert total["recall"] >= 0.95
    assert total["precision"] >= 0.99
