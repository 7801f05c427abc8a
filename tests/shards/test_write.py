"""Shards open in the loaders people use, hold exactly the accepted clips, and repeat byte for byte."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.config import load_plan
from curation.errors import VideoError
from curation.footage import Film, Shot, write_film
from curation.plan import ShardSettings
from curation.run import run
from curation.table import Store
from curation.video import Video
from shards.encode import cut_clip
from shards.picture import output_size
from shards.write import ShardSet
from tests.helpers import shard_bytes


@pytest.fixture(scope="module")
def kept(clips: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {clip["clip_id"]: clip for clip in clips if clip["status"] == "kept"}


def num_frames(video: bytes) -> int:
    with av.open(io.BytesIO(video)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_webdataset_reads_every_accepted_clip_whole(finished: Path, kept: dict[str, dict[str, Any]]) -> None:
    import webdataset

    tars = [str(path) for path in sorted((finished / "shards").glob("*.tar"))]
    samples = {s["__key__"]: s for s in webdataset.WebDataset(tars, shardshuffle=False)}
    assert set(samples) == set(kept)
    for key, sample in samples.items():
        clip, about = kept[key], json.loads(sample["json"])
        assert num_frames(sample["mp4"]) == clip["num_frames"]
        assert sample["txt"].decode() == (clip["caption"] or "")
        assert about["clip_id"] == key
        assert about["start_s"] == clip["start_s"]
        assert about["motion_score"] == clip["motion_score"]
        assert not {"status", "reason", "error", "frame_captions", "shard"} & set(about)
        assert clip["sample_key"] == key
        assert (finished / "shards" / clip["shard"]).exists()


def test_wids_reads_the_index(finished: Path, kept: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    script = """
import json, sys, wids
dataset = wids.ShardListDataset(sys.argv[1], cache_dir=sys.argv[2], keep=True)
print(json.dumps([[s["__key__"], len(s[".mp4"].read()), s[".txt"]] for s in (dataset[i] for i in range(len(dataset)))]))
"""
    index = str(finished / "shards" / "index.json")
    done = subprocess.run(
        [sys.executable, "-c", script, index, str(tmp_path)], capture_output=True, text=True, check=True
    )
    samples = json.loads(done.stdout.splitlines()[-1])
    assert [key for key, _, _ in samples] == sorted(kept)
    assert all(size > 1000 for _, size, _ in samples)
    assert [text for _, _, text in samples] == [kept[key]["caption"] or "" for key in sorted(kept)]


def test_hugging_face_datasets_reads_the_shards(
    finished: Path, kept: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    script = """
import json, sys
from datasets import Video, load_dataset
data = load_dataset("webdataset", data_files=sys.argv[1] + "/*.tar", split="train", cache_dir=sys.argv[2])
data = data.cast_column("mp4", Video(decode=False)) if "Video" in str(data.features["mp4"]) else data
print(json.dumps([[row["__key__"], row["txt"], row["json"]["num_frames"]] for row in data]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(finished / "shards"), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert rows == [[key, kept[key]["caption"] or "", kept[key]["num_frames"]] for key in sorted(kept)]


def test_the_index_says_what_the_shards_are(finished: Path, kept: dict[str, dict[str, Any]]) -> None:
    index = json.loads((finished / "shards" / "index.json").read_text())
    assert index["wids_version"] == 1
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == len(kept)
    for shard in index["shardlist"]:
        data = (finished / "shards" / shard["url"]).read_bytes()
        assert len(data) == shard["filesize"]
        assert hashlib.md5(data).hexdigest() == shard["md5sum"]
    assert (finished / "shards").joinpath("000000.tar").exists()
    assert sorted(path.name for path in finished.iterdir() if "shards" in path.name) == ["shards"]


def test_members_are_plain_files_with_safe_names(finished: Path) -> None:
    for path in (finished / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                assert "/" not in member.name
                assert member.mtime == 0


def test_a_shard_holds_at_most_so_many_samples_and_order_is_by_clip_id(
    finished: Path, kept: dict[str, dict[str, Any]]
) -> None:
    shard_set = ShardSet(Store(finished), ShardSettings(max_samples=5))
    parts = shard_set.parts()
    ids = [part.clips["clip_id"].to_pylist() for part in parts]
    assert [len(part) for part in ids[:-1]] == [5] * (len(ids) - 1)
    assert [clip for part in ids for clip in part] == sorted(kept)


def counter_film(path: Path, fps: Fraction, count: int, codec: str = "libx264", gop: int = 50) -> None:
    """A film whose frame number can be read from its pixels: eleven black or white squares, one per bit."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options={"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = 352, 64, "yuv420p"
        for i in range(count):
            bits = np.array([255 * (i >> k & 1) for k in range(11)], np.uint8)
            picture = np.repeat(np.repeat(bits, 32)[None], 64, axis=0)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.dstack([picture] * 3))))
        out.mux(stream.encode(None))


def numbers(video: Path | io.BytesIO) -> list[int]:
    """The frame numbers written into the pictures."""
    with av.open(video if isinstance(video, io.BytesIO) else str(video)) as container:
        pictures = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    return [sum(int(picture[32, 16 + 32 * k] > 127) << k for k in range(11)) for picture in pictures]


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(24000, 1001), Fraction(60000, 1001)], ids=str)
@pytest.mark.parametrize(("start", "end"), [(0, 10), (49, 51), (50, 100), (77, 123), (149, 150)])
def test_a_clip_has_exactly_its_frames(fps: Fraction, start: int, end: int, tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    counter_film(source, fps, 150)
    with Video(source) as video:
        times = [frame.t_s for frame in video.frames()] + [video.end_s]
    row = {"start_s": times[start], "end_s": times[end], "num_frames": end - start, "fps": float(fps)}
    clip = cut_clip(str(source), row, ShardSettings(crf=10)).mp4
    assert numbers(io.BytesIO(clip)) == list(range(start, end))


def test_a_source_that_has_lost_frames_is_refused(tmp_path: Path) -> None:
    counter_film(tmp_path / "source.mp4", Fraction(24), 20)
    row = {"start_s": 0.0, "end_s": 2.0, "num_frames": 48, "fps": 24.0}
    with pytest.raises(VideoError, match=r"gave 20 frames from 0.000 to 2.000 s, not 48"):
        cut_clip(str(tmp_path / "source.mp4"), row, ShardSettings())


def test_encoding_repeats_byte_for_byte(tmp_path: Path) -> None:
    """x264's assembly does not, unless it is told to: about one run in ten differed."""
    film = Film(name="f.mp4", width=320, height=240, shots=(Shot(camera="pan_right", camera_speed=0.4, seconds=1.5),))
    write_film(tmp_path / film.name, film)
    row = {"start_s": 0.0, "end_s": 1.5, "num_frames": 36, "fps": 24.0}
    clips = [cut_clip(str(tmp_path / film.name), row, ShardSettings()).mp4 for _ in range(40)]
    assert len(collections.Counter(clips)) == 1


def test_settings_of_the_encoder_are_used(tmp_path: Path) -> None:
    film = Film(name="f.mp4", shots=(Shot(camera="pan_right", camera_speed=0.4, seconds=2.0),))
    write_film(tmp_path / film.name, film)
    row = {"start_s": 0.0, "end_s": 2.0, "num_frames": 48, "fps": 24.0}
    clip = cut_clip(str(tmp_path / film.name), row, ShardSettings(short_side_px=180, gop_s=0.5)).mp4
    with av.open(io.BytesIO(clip)) as container:
        frames = list(container.decode(video=0))
    assert {(frame.width, frame.height) for frame in frames} == {(320, 180)}
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 12, 24, 36]


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((640, 360), None, (640, 360)),
        ((193, 144), None, (192, 144)),
        ((1080, 1920), 480, (480, 854)),
        ((320, 180), 480, (320, 180)),
    ],
)
def test_output_size(size: tuple[int, int], short: int | None, expected: tuple[int, int]) -> None:
    assert output_size(*size, short) == expected


def test_clips_that_are_cut_and_captioned_already_are_packed_as_they_are(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "videos").mkdir(parents=True)
    (tmp_path / "data" / "labels").mkdir()
    for name in ("pan.mp4", "zoom.mp4"):
        (tmp_path / "data" / "videos" / name).write_bytes((footage / name).read_bytes())
        (tmp_path / "data" / "labels" / f"{Path(name).stem}.txt").write_text(f"Two lines:\n{name}.\n")
    from curation.reshard import shard_directory

    summary = shard_directory(tmp_path / "data", tmp_path / "out", engine="local")
    assert summary.shards["samples"] == 2
    with tarfile.open(tmp_path / "out" / "shards" / "000000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    videos = {data for name, data in content.items() if name.endswith(".mp4")}
    assert videos == {(footage / name).read_bytes() for name in ("pan.mp4", "zoom.mp4")}
    captions = {data.decode() for name, data in content.items() if name.endswith(".txt")}
    assert captions == {"Two lines:\npan.mp4.", "Two lines:\nzoom.mp4."}


def test_shards_do_not_depend_on_how_many_clips_are_encoded_at_a_time(
    finished: Path, footage: Path, tmp_path: Path
) -> None:
    settings = load_plan("weight_free").shards
    shard_set = ShardSet(Store(finished), settings)
    parts = shard_set.parts()
    shard_set.aside = tmp_path / "new"
    shard_set.folder = tmp_path / "none"
    shard_set.aside.mkdir()
    step = shard_set.step("/", threads=4)
    step.setup()
    step(parts[0])
    assert (
        hashlib.md5((tmp_path / "new" / "000000.tar").read_bytes()).hexdigest() == shard_bytes(finished)["000000.tar"]
    )


def test_a_film_of_another_pipeline_and_size_mid_stream_is_no_problem(tmp_path: Path) -> None:
    """Two films of different size joined as raw H.264: one stream whose resolution changes."""
    raw = b""
    for i, (width, height) in enumerate([(320, 180), (160, 120)]):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="h264") as out:
            stream = out.add_stream("libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for k in range(30):
                picture = np.full((height, width, 3), 60 + 100 * i + k, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            out.mux(stream.encode(None))
        raw += buffer.getvalue()
    (tmp_path / "changes.h264").write_bytes(raw)
    summary = run("as_is", [str(tmp_path / "changes.h264")], tmp_path / "out", engine="local", shards=False)
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert summary.videos["done"] == 1
    clip = cut_clip(str(tmp_path / "changes.h264"), rows[0], ShardSettings()).mp4
    with av.open(io.BytesIO(clip)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == rows[0]["num_frames"] == 60
    assert {(frame.width, frame.height) for frame in frames} == {(320, 180)}
