"""Stages over the whole table: the same result however the table came about, and no work on what they reject."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.errors import StageError, UsageError
from curation.footage import DEMO, write_film
from curation.reshard import shard_directory
from curation.run import run
from curation.stage import Stage, TableStage
from curation.summary import Summary
from curation.table import Store
from tests.helpers import contents

HERE = "tests.curation.test_whole_table"
DECODE = {"decode": {"isolate": False}}
FUSSY = "tests.curation.broken_filters:Fussy"
KEEP = {"duplicate_score": {"max": 0, "unknown": "keep"}}
# The same scenes in another size, codec and rate; and a film of its own.
CUTS = dataclasses.replace(next(film for film in DEMO if film.name == "hard_cuts.mp4"), width=480, height=270)
SMALL = dataclasses.replace(CUTS, name="a_small.webm", codec="libvpx-vp9", width=240, height=136, fps=20)
OTHER = next(film for film in DEMO if film.name == "cuts_vp9.webm")


@dataclasses.dataclass(kw_only=True)
class Copied(Stage):
    """Says of a clip whether it is a copy; cannot stand copies of anything if it is ``strict``."""

    name = "copied"
    reads = ("duplicate_of",)
    writes = pa.schema([("copied", pa.float32())])

    strict: bool = False

    def process(self, clips: pa.Table) -> pa.Table:
        copied = [float(original is not None) for original in clips["duplicate_of"].to_pylist()]
        if self.strict and any(copied):
            raise ValueError("a copy")
        return pa.table({"copied": pa.array(copied, pa.float32())})


@dataclasses.dataclass(kw_only=True)
class Twice(Stage):
    """Reads what ``Copied`` says."""

    name = "twice"
    reads = ("copied",)
    writes = pa.schema([("twice", pa.float32())])

    def process(self, clips: pa.Table) -> pa.Table:
        return pa.table({"twice": pa.array([2 * value for value in clips["copied"].to_pylist()], pa.float32())})


@dataclasses.dataclass(kw_only=True)
class Prepared(TableStage):
    """Counts clips with what ``setup`` has given it."""

    name = "prepared"
    reads = ("duration_s",)
    writes = pa.schema([("prepared", pa.float32())])

    broken: bool = False

    def keep_in(self, folder: Path) -> None:
        self.folder = folder

    def setup(self) -> None:
        if self.broken:
            raise RuntimeError("nothing to be had")
        self.one = float(self.folder.name == "pending")

    def process(self, clips: pa.Table) -> pa.Table:
        return pa.table({"prepared": pa.array([self.one] * clips.num_rows, pa.float32())})


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    for film in (CUTS, SMALL, OTHER):
        write_film(folder / film.name, film)
        (folder / film.name).with_suffix(".json").write_text(json.dumps({"caption": f"From {film.name}."}))
    return {film.name: folder / film.name for film in (CUTS, SMALL, OTHER)}


def go(output: Path, *videos: Path, last: Any = "sidecar_captions", shards: bool = False, **changes: Any) -> Summary:
    file = output.parent / "p.yaml"
    stages = [DECODE, "video_hash", "duplicates", last]
    file.write_text(json.dumps({"p": {"stages": stages, "keep": KEEP, **changes}}))
    return run("p", [str(video) for video in videos], output, config=str(file), engine="local", shards=shards)


def rows(output: Path) -> dict[str, list[dict[str, Any]]]:
    """The clips of each film, in order of time."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(Store(output).clips().to_pylist(), key=lambda row: row["start_s"]):
        found.setdefault(Path(row["video"]).name, []).append(row)
    return found


def test_copies_are_rejected_and_nothing_is_done_for_them_afterwards(films: dict[str, Path], tmp_path: Path) -> None:
    summary = go(tmp_path / "out", *films.values())
    found = rows(tmp_path / "out")
    large, small = found["hard_cuts.mp4"], found["a_small.webm"]
    assert len(large) == len(small) == 4
    known = [i for i, row in enumerate(small) if row["duplicate_score"] is not None]
    assert len(known) >= 3  # the shortest shot may be too short
    assert summary.rejected_by == {"duplicate_score": len(known)}
    for i in known:
        assert small[i]["duplicate_of"] == large[i]["clip_id"]
        assert small[i]["duplicate_score"] > 0.75
        assert (small[i]["status"], small[i]["reason"]) == ("rejected", "duplicate_score")
        assert small[i]["caption"] is None
        assert (large[i]["status"], large[i]["duplicate_of"], large[i]["duplicate_score"]) == ("kept", None, 0.0)
        assert large[i]["caption"] == "From hard_cuts.mp4."
    assert {row["status"] for row in found["cuts_vp9.webm"]} == {"kept"}


def test_films_that_come_one_by_one_give_what_one_run_over_all_gives(films: dict[str, Path], tmp_path: Path) -> None:
    go(tmp_path / "at_once", *films.values())
    expected = contents(tmp_path / "at_once")
    grown = tmp_path / "grown"
    go(grown, films["a_small.webm"])
    assert {row["status"] for row in rows(grown)["a_small.webm"]} == {"kept"}
    go(grown, films["a_small.webm"], films["cuts_vp9.webm"])
    go(grown, *reversed(films.values()))
    assert contents(grown) == expected
    again = go(grown, *films.values())
    assert again.metrics == {}
    assert contents(grown) == expected


def test_a_run_killed_before_the_whole_table_is_looked_at_is_taken_up_again(
    films: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    go(tmp_path / "whole", *films.values())
    for first in ([], list(films.values())):  # a new table, and one that was finished before
        output = tmp_path / f"out{len(first)}"
        if first:
            go(output, *first)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("curation.run.over_the_whole_table", killed)
            go(output, *films.values())
        assert {row["status"] for row in rows(output)["a_small.webm"]} == {"kept"}
        assert go(output, *films.values()).metrics == {}
        assert contents(output) == contents(tmp_path / "whole")


def test_copies_that_are_kept_only_for_now_are_not_packed(
    films: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    output, videos = tmp_path / "out", (films["a_small.webm"], films["hard_cuts.mp4"])
    for _ in range(2):  # a new table, and one that was finished before
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("curation.run.over_the_whole_table", killed)
            go(output, *videos)
        with pytest.raises(UsageError, match="kept only for now; run 'p' again to its end"):
            shard_directory(output, engine="local")
        assert not (output / "shards").exists()
        summary = go(output, *videos)
    assert shard_directory(output, engine="local").shards["samples"] == summary.clips["kept"] < 6


def test_a_clip_that_fails_afterwards_is_still_the_one_to_keep(films: dict[str, Path], tmp_path: Path) -> None:
    stage = {FUSSY: {"shortest_s": 1.9}}
    videos = films["hard_cuts.mp4"], films["a_small.webm"]
    first = go(tmp_path / "out", *videos, last=stage)
    before = contents(tmp_path / "out")
    short = [row for row in rows(tmp_path / "out")["hard_cuts.mp4"] if row["duration_s"] < 1.9]
    assert [row["status"] for row in short] == ["failed", "failed"]
    assert first.failed_by["fussy"] >= 2
    assert go(tmp_path / "out", *videos, last=stage).failed_by == first.failed_by
    assert contents(tmp_path / "out") == before


def test_a_failure_of_a_clip_that_turns_out_to_be_a_copy_is_forgotten(films: dict[str, Path], tmp_path: Path) -> None:
    stage = {FUSSY: {"shortest_s": 1.9}}
    alone = go(tmp_path / "out", films["a_small.webm"], last=stage)
    assert alone.failed_by == {"fussy": 2}
    go(tmp_path / "out", films["a_small.webm"], films["hard_cuts.mp4"], last=stage)
    copies = [row for row in rows(tmp_path / "out")["a_small.webm"] if row["duplicate_of"]]
    assert len(copies) >= 3
    assert {(row["status"], row["error"]) for row in copies} == {("rejected", None)}


@pytest.mark.parametrize("strict", [False, True])
def test_what_was_made_of_an_old_result_is_made_again(films: dict[str, Path], tmp_path: Path, strict: bool) -> None:
    stages = [DECODE, "video_hash", "duplicates", {f"{HERE}:Copied": {"strict": strict}}, f"{HERE}:Twice"]
    small, both = [films["a_small.webm"]], [films["a_small.webm"], films["hard_cuts.mp4"]]
    go(tmp_path / "grown", *small, stages=stages, keep={})
    assert {row["twice"] for row in rows(tmp_path / "grown")["a_small.webm"]} == {0}
    for output in ("grown", "at_once"):
        go(tmp_path / output, *both, stages=stages, keep={})
    copies = [row for row in rows(tmp_path / "grown")["a_small.webm"] if row["duplicate_of"]]
    assert len(copies) >= 3
    assert {row["twice"] for row in copies} == {None if strict else 2}
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")
    assert go(tmp_path / "grown", *both, stages=stages, keep={}).metrics == {}


def test_a_stage_is_set_up_before_it_sees_the_table(films: dict[str, Path], tmp_path: Path) -> None:
    go(tmp_path / "out", films["cuts_vp9.webm"], last=f"{HERE}:Prepared")
    assert {row["prepared"] for row in rows(tmp_path / "out")["cuts_vp9.webm"]} == {1}
    with pytest.raises(StageError, match="cannot be set up: RuntimeError: nothing to be had"):
        go(tmp_path / "out", films["cuts_vp9.webm"], last={f"{HERE}:Prepared": {"broken": True}})


def test_clips_that_were_rejected_before_are_no_candidates(films: dict[str, Path], tmp_path: Path) -> None:
    keep = {"width": {"max": 400}, **KEEP}
    videos = films["hard_cuts.mp4"], films["a_small.webm"]
    go(tmp_path / "out", *videos, keep=keep)
    found = rows(tmp_path / "out")
    assert {row["status"] for row in found["a_small.webm"]} == {"kept"}
    assert {(row["reason"], row["duplicate_score"]) for row in found["hard_cuts.mp4"]} == {("width", None)}
    go(tmp_path / "scored", *videos, keep=keep, score_rejected=True)
    found = rows(tmp_path / "scored")
    assert {row["status"] for row in found["a_small.webm"]} == {"kept"}
    assert {row["duplicate_of"] for row in found["a_small.webm"]} == {None}
    small = [row["clip_id"] for row in found["a_small.webm"]]
    assert sum(row["duplicate_of"] in small for row in found["hard_cuts.mp4"]) >= 3


def test_only_the_best_copies_are_packed_and_hashes_stay_in_the_table(films: dict[str, Path], tmp_path: Path) -> None:
    summary = go(tmp_path / "out", films["hard_cuts.mp4"], films["a_small.webm"], shards=True)
    assert summary.shards["samples"] == summary.clips["kept"] < 6
    with tarfile.open(tmp_path / "out" / "shards" / "000000.tar") as tar:
        abouts = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    assert all("video_hash" not in about and about["duplicate_of"] is None for about in abouts)


@pytest.mark.slow
def test_ray_gives_the_same(films: dict[str, Path], tmp_path: Path) -> None:
    go(tmp_path / "local", *films.values())
    call = "run('p', sys.argv[3:], sys.argv[2], config=sys.argv[1], shards=False)"
    script = f"import sys; from curation.run import run; {call}"
    videos = map(str, films.values())
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "p.yaml"), str(tmp_path / "ray"), *videos], check=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
