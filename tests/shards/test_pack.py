"""One hostile source costs its clip and no other; what a sample says of itself is true."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pyarrow as pa
import pytest

import shards.pack
from curation.fingerprint import fingerprint
from curation.frames import Frames
from curation.reshard import shard_directory
from curation.run import run
from curation.stage import Filter
from curation.table import Store
from filters.quality import Quality
from shards.encode import Cut, Cutter
from shards.verify import verify
from tests.shards.films import FILMS, Film

MINE = """
mine:
  stages: [{decode: {detector: none, max_clip_s: 1.0}}STAGES]
  shards: SHARDS
"""


@dataclasses.dataclass
class Hostile(Cutter):
    """Does what decoders do to strangers' files, depending on the file."""

    def __call__(self, source: str, row: dict[str, Any]) -> Cut:
        name = Path(source).stem
        if name == "crash":
            os._exit(139)
        if name == "hang":
            time.sleep(600)
        if name == "raise":
            raise RuntimeError("something unforeseen")
        return super().__call__(source, row)


@dataclasses.dataclass(kw_only=True)
class Bars(Filter):
    """Says that there is a bar above.

    Writes:
        letterbox: as told.
    """

    top: float = 0.25

    name: ClassVar[str] = "bars"
    frames: ClassVar[Frames] = Frames(fps=2, long_side_px=64)
    writes: ClassVar[pa.Schema] = pa.schema([Quality.writes.field("letterbox")])

    def score(self, frames: np.ndarray, times: np.ndarray) -> Any:
        return {"letterbox": {"left": 0.0, "top": self.top, "right": 0.0, "bottom": 0.0}}


def go(folder: Path, shards_: str, output: Path, *more: str, shards: bool = True) -> Any:
    config = folder.parent / "mine.yaml"
    config.write_text(MINE.replace("SHARDS", shards_).replace("STAGES", "".join(f", {{{stage}}}" for stage in more)))
    return run("mine", [str(folder)], output, config=str(config), engine="local", shards=shards)


def samples(output: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Key to MP4 and json."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((output / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return {key: (sample["mp4"], json.loads(sample["json"])) for key, sample in found.items()}


@pytest.mark.slow
def test_a_source_that_crashes_or_hangs_costs_its_clips_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.pack, "Cutter", Hostile)
    (tmp_path / "in").mkdir()
    # Files of equal content would be one video.
    for i, name in enumerate(("a_good", "crash", "hang", "raise", "z_good")):
        Film(count=20 + i).write(tmp_path / "in" / f"{name}.mp4")
    go(tmp_path / "in", "{stall_s: 2.0}", tmp_path / "out")
    rows = {Path(row["video"]).stem: row for row in Store(tmp_path / "out").clips().to_pylist()}
    assert {name for name, row in rows.items() if row["error"] is None} == {"a_good", "z_good"}
    assert rows["crash"]["error"].startswith("shards: VideoError: the decoder crashed")
    assert rows["hang"]["error"].startswith("shards: VideoError: the decoder made no progress for 2 s")
    assert rows["raise"]["error"] == "shards: RuntimeError: something unforeseen"
    assert set(samples(tmp_path / "out")) == {rows["a_good"]["clip_id"], rows["z_good"]["clip_id"]}
    assert verify(Store(tmp_path / "out")) == []


@pytest.fixture
def films(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("constant", "variable"):
        FILMS[name].write(tmp_path / "in" / f"{name}.mp4")
    return tmp_path / "in"


@pytest.mark.slow
def test_a_sample_tells_what_its_mp4_holds(films: Path, tmp_path: Path) -> None:
    go(films, "{fps: 10, short_side_px: 32, codec: av1}", tmp_path / "out")
    rows = {row["clip_id"]: row for row in Store(tmp_path / "out").clips().to_pylist()}
    found = samples(tmp_path / "out")
    assert set(found) == set(rows)
    for key, (mp4, about) in found.items():
        with av.open(io.BytesIO(mp4)) as container:
            frames = list(container.decode(video=0))
        assert about["num_frames"] == len(frames) == max(1, round(rows[key]["duration_s"] * 10))
        assert (about["fps"], about["codec"], about["has_audio"]) == (10.0, "av1", False)
        assert (about["width"], about["height"]) == (frames[0].width, frames[0].height) == (192, 32)
        assert about["encoding"] == {**about["encoding"], "how": "encoded", "why": "", "fps": 10.0}
        assert rows[key]["fps"] != 10.0  # the table goes on describing the source
    assert verify(Store(tmp_path / "out")) == []


@pytest.mark.slow
def test_a_sample_that_says_the_wrong_number_of_frames_is_found(films: Path, tmp_path: Path) -> None:
    from tests.shards.test_verify import rewrite

    go(films, "{}", tmp_path / "out")
    assert verify(Store(tmp_path / "out")) == []
    rewrite(
        tmp_path / "out" / "shards" / "000000.tar",
        lambda name, data: data.replace(b'"num_frames": ', b'"num_frames": 9') if name.endswith("json") else data,
    )
    assert any("frames, its json says 9" in problem for problem in verify(Store(tmp_path / "out")))


@pytest.mark.slow
def test_clips_that_cannot_be_copied_are_counted(films: Path, tmp_path: Path) -> None:
    summary = go(films, "{video: remux}", tmp_path / "out")
    found = samples(tmp_path / "out").values()
    fallen_back = [about for _, about in found if about["encoding"]["why"]]
    assert fallen_back
    assert summary.metrics["clips_not_remuxed"] == summary.metrics["clips_encoded"] == len(fallen_back)
    assert summary.metrics["clips_remuxed"] == len(found) - len(fallen_back) > 0
    assert {about["encoding"]["how"] for _, about in found} == {"encoded", "remuxed"}
    assert verify(Store(tmp_path / "out")) == []


@pytest.mark.slow
def test_clips_are_reused_only_under_equal_settings(films: Path, tmp_path: Path) -> None:
    go(films, "{}", tmp_path / "out")
    before = samples(tmp_path / "out")
    again = go(films, "{crf: 18, max_samples: 3}", tmp_path / "out")
    assert set(again.metrics) == {"clips_reused"}
    assert samples(tmp_path / "out") == before
    changed = go(films, "{audio: keep, max_samples: 3}", tmp_path / "out")
    assert set(changed.metrics) == {"clips_encoded"}


@pytest.mark.slow
def test_clips_whose_bars_changed_are_encoded_anew(films: Path, tmp_path: Path) -> None:
    def heights(top: float) -> set[int]:
        go(films, "{crop_bars: true}", tmp_path / "out", f"tests.shards.test_pack.Bars: {{top: {top}}}")
        return {about["height"] for _, about in samples(tmp_path / "out").values()}

    assert heights(0.25) == {48}
    assert heights(0.5) == {32}
    assert verify(Store(tmp_path / "out")) == []


def test_a_part_of_a_file_is_never_packed_as_the_whole(tmp_path: Path) -> None:
    """A folder of before such a pipeline was refused."""
    (tmp_path / "in").mkdir()
    for name, count in (("long", 60), ("short", 20)):
        Film(count=count).write(tmp_path / "in" / f"{name}.mp4")
    go(tmp_path / "in", "{}", tmp_path / "out", shards=False)
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    state["shards"]["video"] = "copy"
    (tmp_path / "out" / "run.json").write_text(json.dumps(state))
    shard_directory(tmp_path / "out", engine="local")
    rows = Store(tmp_path / "out").clips().to_pylist()
    why = "shards: VideoError: the clip is 20 of the 60 frames of its file, which `video: copy` would pack whole"
    assert [Path(row["video"]).stem for row in rows if row["status"] == "kept"] == ["short"]
    assert [row["error"].startswith(why) for row in rows if row["error"]] == [True] * 3
    assert [about["num_frames"] for _, about in samples(tmp_path / "out").values()] == [20]


def replace_it(path: Path) -> None:
    Film(count=61).write(path)


def replace_it_by_one_of_its_size(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"VideoHandler", b"VideoHandled"))
    os.utime(path, ns=(1, 1))


def bring_it_back(path: Path) -> None:
    """As copied from elsewhere: the same content, at another time."""
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "num_read", "delivered"),
    [(replace_it, 0, False), (replace_it_by_one_of_its_size, 1, False), (bring_it_back, 1, True)],
)
def test_clips_of_a_file_that_has_changed_are_not_cut_under_the_old_captions(
    change: Any, num_read: int, delivered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    source = Film(count=60).write(tmp_path / "in" / "film.mp4")
    go(tmp_path / "in", "{}", tmp_path / "out", shards=False)
    read: list[str] = []
    monkeypatch.setattr(shards.pack, "fingerprint", lambda path: read.append(path) or fingerprint(path))
    change(source)
    shard_directory(tmp_path / "out", engine="local")
    errors = set(Store(tmp_path / "out").clips()["error"].to_pylist())
    why = "shards: VideoError: the file has changed since it was decoded; run `cutroom run` again"
    assert errors == ({None} if delivered else {why})
    assert len(read) == num_read  # of three clips
    if not delivered:
        go(tmp_path / "in", "{}", tmp_path / "out")
    assert len(samples(tmp_path / "out")) == 3
    assert verify(Store(tmp_path / "out")) == []


def test_a_table_that_does_not_say_what_its_files_were_is_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = Film(count=20).write(tmp_path / "in" / "film.mp4")
    go(tmp_path / "in", "{}", tmp_path / "out", shards=False)
    store = Store(tmp_path / "out")
    for part_id, table in store.parts("videos"):
        rows = [{**row, "bytes": None, "mtime_ns": None, "num_frames": None} for row in table.to_pylist()]
        store.write("videos", part_id, pa.Table.from_pylist(rows, schema=table.schema))
    os.utime(source, ns=(1, 1))
    shard_directory(tmp_path / "out", engine="local")
    assert len(samples(tmp_path / "out")) == 1


@pytest.mark.slow
def test_sharding_again_in_place_keeps_everything(films: Path, tmp_path: Path) -> None:
    go(films, "{fps: 12, codec: vp9}", tmp_path / "out")
    before = samples(tmp_path / "out")
    (tmp_path / "out" / "shards" / "000000.tar").unlink()
    shard_directory(tmp_path / "out", engine="local")
    assert samples(tmp_path / "out") == before
