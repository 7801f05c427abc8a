"""Shards open in the loaders people use, hold exactly the accepted clips, and repeat byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import av
import pytest

from curation.config import load_plan
from curation.plan import ShardSettings
from curation.table import Store
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
        assert not {"status", "reason", "error", "measured", "frame_captions", "shard"} & set(about)
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


@pytest.mark.slow
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
