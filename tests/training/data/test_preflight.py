"""What a run will read is said before it starts, and a bucket that nothing goes to is an error with a hint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curation.errors import UsageError
from curation.rules import Rule
from tests.training.data.made import row, write_tar
from training.data.faults import BadDataError
from training.data.loader import Loader
from training.data.preflight import preflight
from training.data.settings import Bucket, DataSettings

CLIPS = [(49, 480, 854)] * 7 + [(20, 480, 854)] * 4 + [(49, 120, 160)] * 3 + [(5, 480, 854)] * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [
        (f"{i:02d}", {"mp4": b"x", "txt": b"t" * (i % 2), "json": row(n, height=h, width=w, score=float(i), codec=c)})
        for i, ((n, h, w), c) in enumerate(zip(CLIPS, ["h264", "av1"] * 8, strict=True))
    ]
    write_tar(tmp_path / "0.tar", [*samples, ("bad", {"txt": b"no video"})])
    return tmp_path


def data(folder: Path, *buckets: Bucket, **more: object) -> DataSettings:
    return DataSettings(shards=str(folder), buckets=list(buckets), **more)  # type: ignore[arg-type]


LARGE, SMALL = (
    Bucket(frames=49, height=480, width=480, batch_size=2),
    Bucket(frames=17, height=256, width=480, batch_size=3),
)


def test_the_report_says_what_is_read_and_what_is_not(folder: Path) -> None:
    report = preflight(data(folder, SMALL, LARGE, images=0.5, keep={"score": Rule(min=1.0)}), world=3)
    assert (report.num_shards, report.num_samples) == (1, 16)
    small, small_images, large, large_images = report.to_table()
    assert (small["bucket"], small["kind"], small["samples"], small["batches"]) == ("17x256x480", "clips", 4, 2)
    assert (small["batch_size"], small["last_batch"], small["num_enlarged"]) == (3, 1, 0)
    assert (large["bucket"], large["samples"], large["batches"], large["last_batch"]) == ("49x480x480", 6, 3, 2)
    assert large["crop_loss"] == pytest.approx(1 - 480 / 854)
    assert small["crop_loss"] == pytest.approx(1 - 256 * 480 / (480 * 854 * (480 / 854) ** 2))
    assert [(one["kind"], one["batches"]) for one in (small_images, large_images)] == [("images", 2), ("images", 3)]
    assert (report.batches, report.steps) == (10, 4)
    assert report.dropped == {"keep: score": 1, "too_short": 2, "too_small": 3}
    assert report.dropped_names["too_small"] == ["0.tar:11", "0.tar:12", "0.tar:13"]
    assert report.bad == {"no_video": 1}
    assert report.bad_names == {"no_video": ["0.tar:bad: has only txt"]}
    assert report.without_caption == 5
    assert json.loads(json.dumps(report.to_dict()))["steps"] == 4


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        (
            Bucket(frames=81, height=256, width=256),
            "bucket 81x256x256 is empty.*large enough, the longest has 49 frames",
        ),
        (Bucket(frames=49, height=1080, width=1920), r"bucket 49x1080x1920 is empty.*the largest is 854x480 \(width x"),
        (Bucket(frames=81, height=720, width=720), "that are there, the largest is 854x480 .*, and the longest has 49"),
        (Bucket(frames=26, height=64, width=64, fps=12.0), "the longest has 25 frames at 12 a second"),
        (Bucket(frames=9, height=64, width=64, fps=60.0), "the fastest has 24.000 frames a second"),
        (Bucket(frames=48, height=480, width=480), "7 samples fit it, and all go to other buckets"),
    ],
    ids=str,
)
def test_an_empty_bucket_is_an_error_that_says_what_comes_nearest(folder: Path, bucket: Bucket, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preflight(data(folder, LARGE, SMALL, bucket))


def test_rules_that_leave_nothing_are_said(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"leave out all 16: \{'no_caption': 8, 'keep: score': 8\}"):
        preflight(data(folder, SMALL, keep={"score": Rule(min=99.0)}, captions="required"))
    with pytest.raises(UsageError, match="no sample fits a bucket"):
        Loader(data(folder, Bucket(frames=81, height=64, width=64)), workers=0)


def test_too_many_bad_samples_are_said_before_a_run(folder: Path) -> None:
    samples = [(f"{i:02d}", {"txt": b"no video"}) for i in range(11)]
    write_tar(folder / "1.tar", samples)
    with pytest.raises(BadDataError, match=r"12 of 28 samples are bad.*no_video: 0\.tar:bad"):
        preflight(data(folder, SMALL))
