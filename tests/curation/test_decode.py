"""The decode pass: one decode gives clips that partition the video, contact sheets and dense scores."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curation.clips
import curation.spool
from curation.clips import divide
from curation.config import load_plan
from curation.decode import Decoded, decode_video
from curation.errors import VideoError
from curation.footage import Film, Shot, write_film
from curation.isolate import Isolated, alive
from curation.video import Video

PLAN = load_plan("weight_free")


def decode(path: Path) -> Decoded:
    row = {"video": path.name, "video_id": "0" * 24}
    return decode_video(str(path), row, PLAN.decode, PLAN.dense, score_rejected=True)


@given(
    steps=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=300),
    max_s=st.one_of(st.none(), st.floats(0.05, 20.0)),
)
def test_pieces_partition_a_shot_and_are_nearly_equal(steps: list[float], max_s: float | None) -> None:
    edges = np.concatenate([[5.0], 5.0 + np.cumsum(steps)])
    times, end_s = edges[:-1].tolist(), float(edges[-1])
    pieces = divide(times, end_s, max_s)
    assert [i for low, high in pieces for i in range(low, high)] == list(range(len(times)))
    assert all(high > low for low, high in pieces)
    if max_s is None:
        assert len(pieces) == 1
    else:
        longest = max(steps)
        lengths = [edges[high] - edges[low] for low, high in pieces]
        assert max(lengths) <= max_s + longest + 1e-6
        if len(pieces) == int(np.ceil((end_s - 5.0) / max_s - 1e-6)):
            assert max(lengths) - min(lengths) <= 2 * longest + 1e-6


def test_a_shot_a_little_longer_than_the_maximum_loses_nothing() -> None:
    times = (np.arange(241) / 24).tolist()
    assert divide(times, 241 / 24, 10.0) == [(0, 120), (120, 241)] or divide(times, 241 / 24, 10.0) == [
        (0, 121),
        (121, 241),
    ]


def test_clips_partition_the_video(footage: Path, truth: dict[str, Any]) -> None:
    for name, facts in truth.items():
        if "broken" in facts:
            continue
        decoded = decode(footage / name)
        rows = decoded.clips.to_pylist()
        assert decoded.video["status"] == "done"
        assert decoded.video["error"] is None
        assert decoded.video["num_frames"] == facts["num_frames"]
        assert (decoded.video["width"], decoded.video["height"]) == (facts["width"], facts["height"])
        assert decoded.video["fps"] == pytest.approx(facts["fps"], rel=1e-3)
        assert rows[0]["start_s"] == 0.0
        # What lies between the clips is the transitions, and nothing is lost but these.
        gaps = [(a["end_s"], b["start_s"]) for a, b in itertools.pairwise(rows) if a["end_s"] != b["start_s"]]
        assert gaps == [(gap["start_s"], gap["end_s"]) for gap in decoded.video["transitions"]]
        in_gaps = round(sum(end_s - start_s for start_s, end_s in gaps) * facts["fps"])
        assert sum(row["num_frames"] for row in rows) + in_gaps == facts["num_frames"]
        gradual = [t for t in facts["transitions"] if t["end_frame"] > t["start_frame"]]
        assert len(gaps) == len(gradual)
        for (start_s, end_s), true in zip(gaps, gradual, strict=True):
            assert start_s * facts["fps"] <= true["start_frame"] + 1
            assert end_s * facts["fps"] >= true["end_frame"] - 1
        assert (
            rows[-1]["end_s"]
            == decoded.video["duration_s"]
            == pytest.approx(facts["num_frames"] / facts["fps"], abs=2e-3)
        )


def test_every_source_frame_is_decoded_exactly_once(
    footage: Path, truth: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    original = Video._raw_frames

    def counting(self: Video, **options: Any) -> Any:
        for frame in original(self, **options):
            decoded.append(self.path)
            yield frame

    monkeypatch.setattr(Video, "_raw_frames", counting)
    decode(footage / "hard_cuts.mp4")
    assert len(decoded) == truth["hard_cuts.mp4"]["num_frames"]


def test_the_contact_sheet_shows_the_frames_at_its_times(footage: Path) -> None:
    path = footage / "long_take.mp4"
    decoded = decode(path)
    with Video(path) as video:
        at = {frame.t_s: frame.picture(640, 360) for frame in video.frames()}
    sheet = decoded.frames.to_pylist()
    assert [row["t_s"] for row in sheet] == pytest.approx([i / 2 for i in range(24)], abs=1e-6)
    spans = {row["clip_id"]: (row["start_s"], row["end_s"]) for row in decoded.clips.to_pylist()}
    for row in sheet:
        start_s, end_s = spans[row["clip_id"]]
        assert start_s <= row["t_s"] < end_s
        shown = cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(shown.astype(int) - at[row["t_s"]]).mean() < 3


def test_a_clip_shorter_than_the_grid_has_a_contact_sheet_too(tmp_path: Path) -> None:
    shots = (Shot(seconds=0.7), Shot(seconds=0.2, background="desert"), Shot(seconds=0.6, background="blue sky"))
    write_film(tmp_path / "short.mp4", Film(name="short.mp4", shots=shots))
    decoded = decode(tmp_path / "short.mp4")
    assert decoded.clips.num_rows == 3
    assert set(decoded.frames["clip_id"].to_pylist()) == set(decoded.clips["clip_id"].to_pylist())


def test_a_shot_put_aside_on_disk_gives_the_same_as_in_memory(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = decode(footage / "long_take.mp4")
    monkeypatch.setattr(curation.spool, "SPOOL_BYTES", 1000)
    on_disk = decode(footage / "long_take.mp4")
    assert on_disk.clips.equals(in_memory.clips)
    assert on_disk.frames.equals(in_memory.frames)


def test_clips_put_together_in_between_are_the_same(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = decode(footage / "hard_cuts.mp4")
    monkeypatch.setattr(curation.clips, "_MOST_TABLES", 1)
    together = decode(footage / "hard_cuts.mp4")
    assert together.clips.num_rows == 4
    assert together.clips.equals(apart.clips)


def test_scores_of_the_demo_tell_what_is_true(footage: Path) -> None:
    def score(name: str, column: str) -> list[float]:
        values: list[float] = decode(footage / name).clips[column].to_pylist()
        return values

    assert score("pan.mp4", "motion_score") == pytest.approx([0.25], rel=0.05)
    assert score("tilt_vp9.webm", "motion_score") == pytest.approx([0.2], rel=0.05)
    assert score("still.mp4", "still_share") == [1.0]
    assert score("letterbox.mp4", "border_area") == pytest.approx([0.44], abs=0.01)
    assert score("hard_cuts.mp4", "border_area") == [0.0] * 4


def test_a_file_that_was_cut_off_is_used_as_far_as_it_goes(footage: Path) -> None:
    decoded = decode(footage / "broken_copy.mp4")
    assert decoded.video["status"] == "done"
    assert "ended early" in decoded.video["error"]
    assert 1.0 < decoded.video["duration_s"] < 6.0
    assert decoded.clips.num_rows >= 1


def test_what_is_no_video_fails_with_the_reason(footage: Path) -> None:
    decoded = decode(footage / "broken_noise.mp4")
    assert decoded.video["status"] == "failed"
    assert "cannot be opened" in decoded.video["error"]
    assert (decoded.clips.num_rows, decoded.frames.num_rows) == (0, 0)


class Fragile:
    """A worker that does what it is told, however bad."""

    def setup(self) -> None:
        self.num_calls = 0

    def __call__(self, task: str) -> int:
        self.num_calls += 1
        if task == "crash":
            os._exit(11)
        if task == "hang":
            time.sleep(60)
        if task == "slow":
            for _ in range(8):
                time.sleep(0.5)
                alive()
        if task == "fail":
            raise ZeroDivisionError
        return self.num_calls


@pytest.mark.slow
def test_a_crash_or_a_hang_costs_one_call_and_slow_work_is_no_hang() -> None:
    child = Isolated(Fragile(), stall_s=2.5)
    try:
        child.start()
        assert [child.call("work"), child.call("work")] == [1, 2]  # set up once
        with pytest.raises(VideoError, match=r"crashed \(exit code 11\)"):
            child.call("crash")
        assert child.call("work") == 1  # in a new child
        with pytest.raises(VideoError, match=r"no progress for 2.5 s"):
            child.call("hang")
        assert child.call("slow") == 1
        with pytest.raises(ZeroDivisionError):
            child.call("fail")
    finally:
        child.close()


class Unready(Fragile):
    """A worker that cannot be set up."""

    def setup(self) -> None:
        raise LookupError("no weights")


def test_a_worker_that_cannot_be_set_up_is_said_before_any_video() -> None:
    child = Isolated(Unready(), stall_s=10)
    with pytest.raises(LookupError, match="no weights"):
        child.start()
    child.close()


def test_a_script_without_a_main_guard_is_told_and_no_video_is_blamed(footage: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from curation.run import run\n"
        f"run('weight_free', [{str(footage / 'pan.mp4')!r}], {str(tmp_path / 'out')!r}, engine='local')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "below `if __name__ == '__main__':`" in done.stderr
    assert not list((tmp_path / "out" / "videos").glob("*.parquet"))


def test_rejected_clips_are_not_scored_unless_asked(footage: Path) -> None:
    path = footage / "hard_cuts.mp4"
    row = {"video": path.name, "video_id": "0" * 24}
    first = dataclasses.replace(
        PLAN.decode, rules={"duration_s": dataclasses.replace(PLAN.rules["duration_s"], min=1.9)}
    )
    skipped = decode_video(str(path), row, first, PLAN.dense, False).clips
    assert skipped["status"].to_pylist() == ["kept", "rejected", "kept", "rejected"]
    assert [value is None for value in skipped["motion_score"].to_pylist()] == [False, True, False, True]
    scored = decode_video(str(path), row, first, PLAN.dense, True).clips
    assert None not in scored["motion_score"].to_pylist()
