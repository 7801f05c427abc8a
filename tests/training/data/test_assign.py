"""A clip goes to the largest and longest bucket that it fits, and whoever goes to none has a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.errors import UsageError
from curation.rules import Rule
from shards.read import Catalogue, read_catalogue
from tests.training.data.made import row, write_tar
from training.data.assign import Assignment, assign, crop_loss, draws, fits_length, fits_size, search_order
from training.data.settings import Bucket, DataSettings


def shards(folder: Path, clips: list[dict[str, Any]]) -> Catalogue:
    """A catalogue of clips of any shape; their videos are not looked at."""
    samples = [(f"{i:04d}", {"mp4": b"x", "txt": b"t", "json": row(**about)}) for i, about in enumerate(clips)]
    return read_catalogue(write_tar(folder / "0.tar", samples), columns=["score"] if "score" in clips[0] else [])


def go(folder: Path, clips: list[dict[str, Any]], *buckets: Bucket, **more: Any) -> Assignment:
    return assign(shards(folder, clips), DataSettings(shards=str(folder), buckets=list(buckets), **more), 0)


@pytest.mark.parametrize(("num_frames", "fits"), [(50, False), (51, True), (52, True)])
def test_a_clip_of_as_many_frames_as_the_bucket_fits(tmp_path: Path, num_frames: int, fits: bool) -> None:
    found = go(tmp_path, [{"num_frames": num_frames}], Bucket(frames=51, height=64, width=64))
    assert found.bucket.tolist() == [0 if fits else -1]
    assert found.dropped() == ({} if fits else {"too_short": 1})


@pytest.mark.parametrize(
    ("num_frames", "fps", "frames", "rate", "fits"),
    [
        (48, 24.0, 16, 8.0, True),
        (47, 24.0, 16, 8.0, True),  # 15.67 frames are 16, as the writer of shards rounds
        (46, 24.0, 16, 8.0, False),
        (24, 24000 / 1001, 24, 24.0, True),
        (24, 24.0, 24, 25.0, False),  # a frame would be shown twice
        (60, 59.94, 30, 30.0, True),
    ],
)
def test_length_at_a_rate_is_counted_by_time(num_frames: int, fps: float, frames: int, rate: float, fits: bool) -> None:
    bucket = Bucket(frames=frames, height=64, width=64, fps=rate)
    assert fits_length(bucket, np.array([num_frames]), np.array([fps])).tolist() == [fits]


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [
        (256, 256, True),
        (230, 256, True),  # covering 256 x 256 needs 256 / 230: 0.807 of the pixels are the clip's own
        (228, 4000, False),
        (720, 1280, True),
        (4000, 228, False),
    ],
)
def test_a_clip_has_four_fifths_of_the_pixels(height: int, width: int, fits: bool) -> None:
    bucket = Bucket(frames=1, height=256, width=256)
    assert fits_size(bucket, np.array([height]), np.array([width]), 0.8).tolist() == [fits]


def test_the_largest_then_the_longest_then_the_nearest_aspect(tmp_path: Path) -> None:
    buckets = [
        Bucket(frames=17, height=64, width=64),
        Bucket(frames=9, height=128, width=128),
        Bucket(frames=33, height=64, width=64),
        Bucket(frames=9, height=96, width=168),
        Bucket(frames=9, height=168, width=96),
    ]
    assert search_order(buckets) == [[1, 3, 4], [2], [0]]
    clips = [
        {"num_frames": 100, "height": 720, "width": 720},
        {"num_frames": 100, "height": 720, "width": 1280},
        {"num_frames": 9, "height": 1280, "width": 720},
        {"num_frames": 100, "height": 100, "width": 100},
        {"num_frames": 32, "height": 100, "width": 100},
        {"num_frames": 8, "height": 720, "width": 720},
        {"num_frames": 100, "height": 32, "width": 32},
        {"num_frames": 16, "height": 100, "width": 100},
    ]
    found = go(tmp_path, clips, *buckets)
    assert found.bucket.tolist() == [1, 3, 4, 2, 0, -1, -1, -1]
    assert found.dropped() == {"too_short": 1, "too_small": 1, "fits_no_bucket": 1}


def test_height_and_width_are_not_swapped(tmp_path: Path) -> None:
    clips = [{"num_frames": 9, "height": 90, "width": 160}]
    assert go(tmp_path, clips, Bucket(frames=9, height=90, width=160)).bucket.tolist() == [0]
    assert go(tmp_path, clips, Bucket(frames=9, height=160, width=90)).bucket.tolist() == [-1]


def test_the_loss_by_cropping() -> None:
    bucket = Bucket(frames=1, height=256, width=256)
    heights, widths = np.array([256, 720, 512]), np.array([256, 1280, 256])
    assert crop_loss(bucket, heights, widths).tolist() == pytest.approx([0, 1 - 720 / 1280, 0.5])


def test_a_bucket_keeps_a_share_and_the_rest_goes_on(tmp_path: Path) -> None:
    clips = [{"num_frames": 20, "height": 64, "width": 64}] * 1000
    large, small = Bucket(frames=9, height=64, width=64, keep=0.3), Bucket(frames=9, height=32, width=32, keep=0.5)
    catalogue = shards(tmp_path, clips)
    settings = DataSettings(shards="x", buckets=[large, small])
    first, second = assign(catalogue, settings, 0), assign(catalogue, settings, 1)
    counts = [int((first.bucket == i).sum()) for i in (0, 1)]
    assert counts[0] == pytest.approx(300, abs=45)
    assert counts[1] == pytest.approx(350, abs=50)
    assert first.dropped() == {"not_kept": 1000 - sum(counts)}
    assert (first.bucket != second.bucket).any()  # another share in another epoch
    assert (first.bucket == assign(catalogue, settings, 0).bucket).all()


def test_rules_come_first_and_have_the_last_word(tmp_path: Path) -> None:
    clips = [{"num_frames": 20, "score": score} for score in (0.1, 0.5, None)]
    bucket = Bucket(frames=9, height=64, width=64)
    found = go(tmp_path, clips, bucket, keep={"score": Rule(min=0.2)})
    assert found.bucket.tolist() == [-1, 0, -1]
    assert found.dropped() == {"keep: score": 2}
    assert go(tmp_path, clips, bucket, keep={"score": Rule(min=0.2, unknown="keep")}).bucket.tolist() == [-1, 0, 0]


def test_the_same_bucket_twice_is_refused() -> None:
    bucket = Bucket(frames=9, height=64, width=64)
    with pytest.raises(UsageError, match="9x64x64 stands there twice"):
        DataSettings(shards="x", buckets=[bucket, Bucket(frames=9, height=64, width=64, batch_size=3)]).check()


def test_draws_are_the_same_on_every_machine() -> None:
    """Values written down: another Python or numpy must not change what a resumed run reads."""
    assert draws(0, 0, "clip", "key")[:3].tolist() == DRAWN
    assert draws(0, 1, "clip", "key")[0] != DRAWN[0]


DRAWN = [0.7664187045984487, 0.029486097463209293, 0.9567786174108868]
