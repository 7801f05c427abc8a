"""Runs: the same result whatever the engine, order or disturbance; only what changed is done again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from curation.errors import TableError, UsageError
from curation.files import LEFTOVERS, flush
from curation.output import check_output
from curation.run import run
from curation.sheets import take_sheets
from curation.summary import Summary
from curation.table import NOT_DECODED, Store
from tests.conftest import PIPELINE
from tests.helpers import contents

QUICK = ["hard_cuts.mp4", "still.mp4", "cuts_vp9.webm", "broken_noise.mp4"]


@pytest.fixture
def folder(footage: Path, tmp_path: Path) -> Path:
    """A few of the films, to be changed at will."""
    (tmp_path / "in").mkdir()
    for name in QUICK:
        shutil.copy(footage / name, tmp_path / "in" / name)
        if (footage / name).with_suffix(".json").exists():
            shutil.copy((footage / name).with_suffix(".json"), tmp_path / "in")
    return tmp_path / "in"


def pipeline_file(folder: Path, **changes: Any) -> Path:
    """A pipeline like weight_free, quicker to decode in one process, with changes."""
    spec: dict[str, Any] = {
        "stages": [{"decode": {"isolate": False}}, "motion", "quality", "sidecar_captions"],
        "keep": {"duration_s": {"min": 1.0}, "still_share": {"max": 0.9}},
        "shards": {"max_samples": 2},
    }
    file = folder / "pipelines.yaml"
    file.write_text(json.dumps({"mine": {**spec, **changes}}))  # JSON is YAML
    return file


def go(folder: Path, output: Path, *, retry_failed: bool = False, shards: bool = True, **changes: Any) -> Summary:
    file = pipeline_file(folder.parent, **changes)
    return run(
        "mine", [str(folder)], output, config=str(file), engine="local", retry_failed=retry_failed, shards=shards
    )


def test_the_tables_add_up(finished: Path) -> None:
    clips, videos = f"'{finished}/clips/*.parquet'", f"'{finished}/videos/*.parquet'"
    count, distinct = duckdb.sql(f"SELECT count(*), count(DISTINCT clip_id) FROM {clips}").fetchall()[0]
    assert count == distinct > 15
    status = dict(duckdb.sql(f"SELECT status, count(*) FROM {clips} GROUP BY 1").fetchall())
    assert set(status) == {"kept", "rejected"}
    assert dict(duckdb.sql(f"SELECT status, count(*) FROM {videos} GROUP BY 1").fetchall()) == {"done": 13, "failed": 1}
    lost = duckdb.sql(f"SELECT video FROM {videos} WHERE error IS NOT NULL ORDER BY 1").fetchall()
    assert [Path(video).name for (video,) in lost] == ["broken_copy.mp4", "broken_noise.mp4"]
    reasons = dict(duckdb.sql(f"SELECT reason, count(*) FROM {clips} WHERE status = 'rejected' GROUP BY 1").fetchall())
    assert reasons == {"duration_s": 1, "still_share": 1, "border_area": 1, "motion_p90": 1}


def test_clips_carry_the_captions_of_their_own_shot(clips: list[dict[str, Any]], truth: dict[str, Any]) -> None:
    checked = 0
    for clip in clips:
        facts = truth[Path(clip["video"]).name]
        for shot in facts.get("shots", []):
            if (
                clip["start_s"] >= shot["start_s"] - 1e-3
                and clip["end_s"] <= shot["end_s"] + 1e-3
                and clip["status"] == "kept"
            ):
                assert clip["caption"] == shot["text"]
                checked += 1
    assert checked >= 12


@pytest.mark.slow
def test_ray_gives_the_same_as_local_and_so_does_another_order(finished: Path, footage: Path, tmp_path: Path) -> None:
    films = sorted(footage.glob("*.mp4"), reverse=True) + sorted(footage.glob("*.webm"))
    script = "import sys; from curation.run import run; run(sys.argv[1], sys.argv[3:], sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, PIPELINE, str(tmp_path / "ray"), *map(str, films)], check=True)
    assert contents(tmp_path / "ray") == contents(finished)
    run(PIPELINE, [str(film) for film in films], tmp_path / "local", engine="local")
    assert contents(tmp_path / "local") == contents(finished)


def test_a_second_run_decodes_and_encodes_nothing(folder: Path, tmp_path: Path) -> None:
    first = go(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert first.metrics["videos_decoded"] == 4
    second = go(folder, tmp_path / "out")
    assert second.metrics == {}
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
def test_a_new_video_is_added_and_only_it_is_decoded(folder: Path, footage: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    shutil.copy(footage / "pan.mp4", folder)
    again = go(folder, tmp_path / "out")
    assert again.metrics["videos_decoded"] == 1
    assert again.metrics["clips_encoded"] == 1
    assert again.metrics["clips_reused"] == 5
    go(folder, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_another_content_under_the_same_name_replaces_the_old_rows(folder: Path, footage: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    shutil.copy(footage / "pan.mp4", folder / "still.mp4")
    go(folder, tmp_path / "out")
    go(folder, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_renamed_video_is_the_same_video(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    shutil.copy(folder / "hard_cuts.mp4", folder / "copy_of_hard_cuts.mp4")
    again = go(folder, tmp_path / "out")
    assert "videos_decoded" not in again.metrics
    errors = {Path(video).name: error for video, error in again.video_errors.items()}
    assert "same content as" in errors["copy_of_hard_cuts.mp4"]
    assert again.videos == {"in": 5, "done": 4, "failed": 1}


@pytest.mark.slow
def test_changing_a_rule_measures_nothing_again(folder: Path, tmp_path: Path) -> None:
    before = go(folder, tmp_path / "out")
    scores = {row["clip_id"]: row["motion_score"] for row in Store(tmp_path / "out").clips().to_pylist()}
    rules = {"duration_s": {"min": 1.0}, "still_share": {"max": 0.9}, "exposure": {"max": 0.5}}
    after = go(folder, tmp_path / "out", keep=rules)
    assert "videos_decoded" not in after.metrics
    assert "clips_encoded" not in after.metrics
    assert after.clips["kept"] < before.clips["kept"]
    assert {row["clip_id"]: row["motion_score"] for row in Store(tmp_path / "out").clips().to_pylist()} == scores
    assert contents(tmp_path / "out") == fresh(folder, tmp_path, keep=rules)


def fresh(folder: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    go(folder, tmp_path / "fresh", **changes)
    return contents(tmp_path / "fresh")


@pytest.mark.slow
def test_loosening_a_rule_measures_the_clips_that_it_had_kept_from_being_measured(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    rules = {"duration_s": {"min": 0.5}, "still_share": {"max": 0.9}}
    again = go(folder, tmp_path / "out", keep=rules)
    assert again.metrics["videos_decoded"] == 1  # only hard_cuts.mp4 holds a clip shorter than a second
    assert again.metrics["clips_encoded"] == 1
    assert contents(tmp_path / "out") == fresh(folder, tmp_path, keep=rules)


@pytest.mark.slow
def test_changing_how_shots_are_divided_gives_what_a_fresh_run_gives(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    stages = [{"decode": {"isolate": False, "max_clip_s": 1.2}}, "motion", "quality", "sidecar_captions"]
    go(folder, tmp_path / "out", stages=stages)
    assert contents(tmp_path / "out") == fresh(folder, tmp_path, stages=stages)


@pytest.mark.slow
def test_a_changed_caption_file_changes_the_caption_and_encodes_nothing(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    (folder / "cuts_vp9.json").write_text(json.dumps({"caption": "Something else."}))
    again = go(folder, tmp_path / "out")
    assert "clips_encoded" not in again.metrics
    assert "videos_decoded" not in again.metrics
    assert contents(tmp_path / "out") == fresh(folder, tmp_path)


def test_a_changed_caption_file_is_seen_by_what_reads_captions(folder: Path, tmp_path: Path) -> None:
    stages = [{"decode": {"isolate": False}}, "motion", "quality", "sidecar_captions", "caption_checks"]
    go(folder, tmp_path / "out", stages=stages, shards=False)
    before = [row["caption_words"] for row in Store(tmp_path / "out").clips().to_pylist()]
    (folder / "cuts_vp9.json").write_text(json.dumps({"caption": "Something else."}))
    go(folder, tmp_path / "out", stages=stages, shards=False)
    assert [row["caption_words"] for row in Store(tmp_path / "out").clips().to_pylist()] != before
    go(folder, tmp_path / "fresh", stages=stages, shards=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_a_broken_caption_file_costs_its_clips_and_is_retried_when_mended(folder: Path, tmp_path: Path) -> None:
    (folder / "cuts_vp9.json").write_text("{")
    broken = go(folder, tmp_path / "out")
    assert broken.failed_by == {"sidecar_captions": 2}
    (folder / "cuts_vp9.json").write_text(json.dumps({"caption": "Mended."}))
    mended = go(folder, tmp_path / "out")
    assert mended.failed_by == {}
    assert contents(tmp_path / "out") == fresh(folder, tmp_path)


@pytest.mark.slow
def test_a_source_that_is_gone_when_shards_are_written_is_said_and_retried(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out", shards=False)
    away = (folder / "cuts_vp9.webm").rename(tmp_path / "away.webm")
    from curation.reshard import shard_directory

    lost = shard_directory(tmp_path / "out", engine="local")
    assert lost.num_lost == 2
    assert lost.failed_by == {"shards": 2}
    away.rename(folder / "cuts_vp9.webm")
    found = shard_directory(tmp_path / "out", engine="local")
    assert found.num_lost == 0
    assert contents(tmp_path / "out") == fresh(folder, tmp_path)


def test_files_that_cannot_be_read_are_failed_rows(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{footage / 'still.mp4'}\nabsent.mp4\n")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "empty.mp4").touch()
    (odd / "gone.mp4").symlink_to("nowhere")
    os.mkfifo(odd / "pipe.mp4")
    Path(os.fsdecode(bytes(odd) + b"/\xff.mp4")).write_bytes(b"x")
    summary = run(PIPELINE, [str(tmp_path / "list.txt"), str(odd)], tmp_path / "out", engine="local", shards=False)
    assert summary.videos == {"in": 6, "done": 1, "failed": 5}
    errors = {Path(video).name: error for video, error in summary.video_errors.items()}
    assert "No such file" in errors["gone.mp4"]
    assert "not a regular file" in errors["pipe.mp4"]
    assert "not UTF-8" in errors["\\udcff.mp4"]
    assert "No such file" in errors["absent.mp4"]
    assert "the file is empty" in errors["empty.mp4"]


def test_two_videos_that_swap_names_keep_what_is_known_of_them(folder: Path, tmp_path: Path) -> None:
    (folder / "cuts_vp9.webm").rename(folder / "other.mp4")
    go(folder, tmp_path / "out", shards=False)
    for old, new in (("other.mp4", "away"), ("still.mp4", "other.mp4"), ("away", "still.mp4")):
        (folder / old).rename(folder / new)
    again = go(folder, tmp_path / "out", shards=False)
    assert "videos_decoded" not in again.metrics
    go(folder, tmp_path / "fresh", shards=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_video_that_cannot_be_read_for_now_keeps_what_is_known_of_it(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out", shards=False)
    before = contents(tmp_path / "out")
    away = (folder / "still.mp4").rename(tmp_path / "away.mp4")
    (folder / "still.mp4").symlink_to(tmp_path / "nowhere")  # as on a disk that is not mounted
    assert go(folder, tmp_path / "out", shards=False).videos["in"] == 4
    assert contents(tmp_path / "out") == before
    (folder / "still.mp4").unlink()
    away.rename(folder / "still.mp4")
    assert "videos_decoded" not in go(folder, tmp_path / "out", shards=False).metrics


@pytest.mark.slow
def test_a_moved_folder_is_recognised(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    moved = folder.rename(folder.parent / "moved")
    again = go(moved, tmp_path / "out")
    assert "videos_decoded" not in again.metrics
    assert "clips_encoded" not in again.metrics
    assert contents(tmp_path / "out") == fresh(moved, tmp_path)


def test_the_same_file_named_in_another_way_is_no_copy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    go(Path("in"), tmp_path / "out")
    before = contents(tmp_path / "out")
    go(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
def test_clips_of_a_file_that_is_away_are_kept_until_it_is_back(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    away = (folder / "hard_cuts.mp4").rename(tmp_path / "away.mp4")
    stages = [{"decode": {"isolate": False, "max_clip_s": 1.2}}, "motion", "quality", "sidecar_captions"]
    without = go(folder, tmp_path / "out", stages=stages, shards=False)
    assert [row["video"].endswith("hard_cuts.mp4") for row in Store(tmp_path / "out").clips().to_pylist()].count(
        True
    ) == 4
    assert any("kept as it was" in error for error in without.video_errors.values())
    away.rename(folder / "hard_cuts.mp4")
    go(folder, tmp_path / "out", stages=stages)
    assert contents(tmp_path / "out") == fresh(folder, tmp_path, stages=stages)


@pytest.mark.slow
def test_a_stage_that_comes_back_is_measured_again(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out")
    go(folder, tmp_path / "out", stages=[{"decode": {"isolate": False}}, "quality"], keep={})
    go(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == fresh(folder, tmp_path)


BRIGHT = "tests.curation.broken_filters:Bright"


def bright(**settings: Any) -> list[object]:
    return [{"decode": {"isolate": False}}, "quality", {BRIGHT: settings}]


def test_a_score_whose_type_has_changed_is_measured_again(folder: Path, tmp_path: Path) -> None:
    go(folder, tmp_path / "out", shards=False, stages=bright(), keep={})
    go(folder, tmp_path / "out", shards=False, stages=bright(whole=True), keep={})
    assert all(row["brightness"] > 0 for row in contents(tmp_path / "out")["clips"])
    go(folder, tmp_path / "fresh", shards=False, stages=bright(whole=True), keep={})
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_no_score_of_old_settings_stays_with_a_clip_that_is_rejected_by_now(folder: Path, tmp_path: Path) -> None:
    dark = {"exposure": {"max": 0.0}}
    go(folder, tmp_path / "out", shards=False, stages=bright(), keep={})
    go(folder, tmp_path / "out", shards=False, stages=bright(), keep=dark)
    assert all(row["brightness"] > 0 for row in contents(tmp_path / "out")["clips"])  # still what it was
    go(folder, tmp_path / "out", shards=False, stages=bright(gain=2.0), keep=dark)
    go(folder, tmp_path / "fresh", shards=False, stages=bright(gain=2.0), keep=dark)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


FUSSY = "tests.curation.broken_filters:Fussy"


@pytest.mark.slow
def test_a_failed_clip_stays_failed_until_what_failed_is_changed(folder: Path, tmp_path: Path) -> None:
    def stages(shortest_s: float, max_clip_s: float = 10.0) -> list[object]:
        decode = {"decode": {"isolate": False, "max_clip_s": max_clip_s}}
        return [decode, "motion", {FUSSY: {"shortest_s": shortest_s}}, "sidecar_captions"]

    first = go(folder, tmp_path / "out", stages=stages(1.8))
    assert first.failed_by == {"fussy": 1}
    assert go(folder, tmp_path / "out", stages=stages(1.8)).failed_by == {"fussy": 1}
    decoded_again = go(folder, tmp_path / "out", stages=stages(1.8, max_clip_s=9.0))
    assert decoded_again.metrics["videos_decoded"] == 4
    assert decoded_again.failed_by == {"fussy": 1}
    assert go(folder, tmp_path / "out", stages=stages(0.1)).failed_by == {}
    assert contents(tmp_path / "out") == fresh(folder, tmp_path, stages=stages(0.1))


def test_a_failed_clip_keeps_what_was_measured_before_it_failed(folder: Path, tmp_path: Path) -> None:
    stages = [{"decode": {"isolate": False}}, "sidecar_captions", {FUSSY: {"shortest_s": 1.9}}]
    go(folder, tmp_path / "out", shards=False, stages=stages, keep={})
    before = contents(tmp_path / "out")
    assert any(row["status"] == "failed" and row["caption"] for row in before["clips"])
    go(folder, tmp_path / "out", shards=False, stages=stages, keep={})
    assert contents(tmp_path / "out") == before


def test_a_clip_that_a_new_rule_rejects_before_it_fails_is_rejected(folder: Path, tmp_path: Path) -> None:
    stages = [{"decode": {"isolate": False}}, {FUSSY: {"shortest_s": 1.9}}]
    go(folder, tmp_path / "out", shards=False, stages=stages, keep={})
    assert any(row["status"] == "failed" for row in contents(tmp_path / "out")["clips"])
    keep = {"duration_s": {"min": 1.9}}
    go(folder, tmp_path / "out", shards=False, stages=stages, keep=keep)
    go(folder, tmp_path / "fresh", shards=False, stages=stages, keep=keep)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_failure_of_a_later_round_is_not_lost_behind_one_of_an_earlier(folder: Path, tmp_path: Path) -> None:
    fussy, picky = {FUSSY: {"shortest_s": 100}}, {"tests.curation.broken_filters:Picky": {"longest_s": 0.1}}
    table = ["video_hash", "duplicates"]
    for stages in ([*table, fussy], [picky, *table, fussy], [*table, fussy]):
        go(folder, tmp_path / "out", shards=False, stages=[{"decode": {"isolate": False}}, *stages], keep={})
    found = Store(tmp_path / "out").clips().to_pylist()
    assert {(row["status"], row["error"].partition(":")[0]) for row in found} == {("failed", "fussy")}


@pytest.mark.slow
def test_a_run_killed_before_it_noted_where_clips_lie_is_mended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.write import ShardSet

    def killed(self: ShardSet, done: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ShardSet, "record", killed)
        go(folder, tmp_path / "out")
    assert not any(row["shard"] for row in Store(tmp_path / "out").clips().to_pylist())
    go(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == fresh(folder, tmp_path)


@pytest.mark.slow
def test_a_damaged_shard_is_encoded_anew_and_never_copied(folder: Path, tmp_path: Path) -> None:
    from curation.reshard import shard_directory

    go(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / "shards" / "000000.tar"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    again = shard_directory(tmp_path / "out", engine="local")
    assert again.metrics == {"clips_encoded": 2, "clips_reused": 3}
    assert contents(tmp_path / "out") == before


def test_lost_contact_sheets_and_clips_are_said(folder: Path, tmp_path: Path) -> None:
    from curation.reshard import shard_directory

    go(folder, tmp_path / "out")
    part = next(path for path in sorted((tmp_path / "out" / "clips").glob("*.parquet")) if path.stem != NOT_DECODED)
    part.unlink()
    for work in (lambda: go(folder, tmp_path / "out"), lambda: shard_directory(tmp_path / "out", engine="local")):
        with pytest.raises(TableError, match="is missing though its part was committed"):
            work()


def test_tables_can_be_read_when_no_video_is_any_good(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    run(PIPELINE, [str(tmp_path / "empty.mp4")], tmp_path / "out", engine="local")
    assert duckdb.sql(f"SELECT motion_score, caption FROM '{tmp_path}/out/clips/*.parquet'").fetchall() == []


def test_two_runs_cannot_share_a_directory(folder: Path, tmp_path: Path) -> None:
    from curation.output import locked

    with locked(tmp_path / "out"), pytest.raises(UsageError, match="another run is writing"):
        go(folder, tmp_path / "out")


def test_nothing_is_encoded_that_a_rule_rejects(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shards.pack

    started = []

    def counting(self: object, source: str, row: dict[str, Any]) -> Any:
        started.append(row["clip_id"])
        return shards.pack.Cut(b"video", "encoded", {})

    monkeypatch.setattr(shards.pack.Cutters, "__call__", counting)
    go(folder, tmp_path / "out")
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert sorted(started) == [row["clip_id"] for row in rows if row["status"] == "kept"]
    assert any(row["status"] == "rejected" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_kill_9_half_way_and_again_gives_the_undisturbed_result(
    engine: str, footage: Path, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "curation.cli", "run", PIPELINE, "--input", str(footage), "--output", str(output)]
    command += ["--engine", engine]
    kills = 0
    for moment in ("videos", "videos", "shards.new"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = count(output, moment)
        while process.poll() is None and count(output, moment) <= before:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    decoded = sum(table.num_rows for _, table in Store(output).parts("videos"))
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics.get("videos_decoded", 0) <= 14 - decoded
    assert contents(output) == contents(finished)


def count(output: Path, folder: str) -> int:
    return len(os.listdir(output / folder)) if (output / folder).is_dir() else 0


def test_a_worker_whose_run_was_killed_fails_no_video_of_the_next(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives its driver for a while, and the next run takes its scratch files away."""

    def gone(path: str) -> pa.Table:
        raise FileNotFoundError(path)

    monkeypatch.setattr("curation.curate.take_sheets", gone)
    with pytest.raises(TableError, match="another run has begun"):
        run("weight_free", [str(footage / "pan.mp4")], tmp_path / "out", engine="local")
    assert not list((tmp_path / "out" / "videos").glob("*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["decoded", "frames", "clips", "videos", "on the disk"])
def test_a_worker_whose_run_was_killed_commits_nothing(
    moment: str, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it measured by the old settings must not come to lie over what the next run wrote, not even in part."""
    output, write = tmp_path / "out", Store.write

    def next_run() -> None:
        store = Store(output)
        store.begin()
        store.create()

    def decoded(path: str) -> pa.Table:
        if moment == "decoded":
            next_run()
        return take_sheets(path)

    def written(self: Store, kind: str, part_id: str, table: pa.Table) -> None:
        if kind == moment:
            next_run()
        write(self, kind, part_id, table)

    def flushed(path: Path) -> None:
        flush(path)  # which may take its time
        if moment == "on the disk":
            next_run()

    with monkeypatch.context() as patch, pytest.raises(TableError, match="another run has begun"):
        patch.setattr("curation.curate.take_sheets", decoded)
        patch.setattr(Store, "write", written)
        patch.setattr("curation.table.flush", flushed)
        run("weight_free", [str(footage / "pan.mp4")], output, engine="local")
    Store(output).create()
    assert not list(output.glob("*/*.parquet"))
    assert not list(output.rglob(LEFTOVERS))
    assert run("weight_free", [str(footage / "pan.mp4")], output, engine="local").clips["kept"]


def test_a_run_killed_before_it_said_what_it_is_leaves_the_folder_free(tmp_path: Path) -> None:
    for name in (".lock", ".5d3b.tmp"):
        (tmp_path / name).touch()
    assert check_output(tmp_path, "weight_free") == {}
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        check_output(tmp_path, "weight_free")
