"""A long film decoded in ranges gives what one pass gives, and a killed run goes on within it."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pytest

from curation.clips import Range
from curation.config import load_plan
from curation.decode import Decode, Decoder, join
from curation.engine import LocalEngine
from curation.errors import CutroomError
from curation.footage import Film, Shot, write_film
from curation.isolate import Isolated
from curation.plan import Plan
from curation.ranges import DecodeRange, RangeStore, range_parts, span
from curation.run import run
from curation.sheets import take_sheets
from curation.table import Part, Store
from tests.helpers import contents

PIPELINE = """\
film:
  stages:
    - decode: {max_clip_s: 3, grid_s: 6}
    - motion
    - quality
  keep:
    duration_s: {min: 1.0}
    motion_p90: {max: 3.0}
"""
BACKGROUNDS = ("green meadow", "desert", "blue sky", "grey harbour")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty seconds: cuts, a shot that is much longer than a range, keyframes nowhere near the points of the grid."""
    lengths = (2.5, 4.0, 19.0, 1.5, 3.2, 0.7, 6.1, 9.0, 4.0)
    shots = tuple(
        Shot(
            seconds=seconds,
            background=BACKGROUNDS[i % 4],
            camera="pan_right" if i % 3 == 0 else "static",
            camera_speed=0.1,
        )
        for i, seconds in enumerate(lengths)
    )
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(path, Film(name=path.name, shots=shots, width=320, height=180))
    pad(path)
    return path


def pad(path: Path) -> None:
    """Make a small MP4 large enough to be asked how long it is, with a box that players skip."""
    size = 5 << 20
    with path.open("ab") as file:
        file.write(struct.pack(">I4s", size, b"free") + bytes(size - 8))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "film.yaml"
    path.write_text(PIPELINE)
    return path


def in_ranges(path: Path, plan: Plan, folder: Path, edges: list[float]) -> Any:
    decoder = Decoder(plan.decode, plan.dense, plan.score_rejected)
    row = {"video": path.name, "video_id": "0" * 24}
    pieces, sheets = [], []
    for i, (start_s, end_s) in enumerate(zip(edges, [*edges[1:], math.inf], strict=True)):
        target = folder / f"{i}.arrow"
        pieces.append(decoder(str(path), row, Range(start_s, end_s), str(target)))
        sheets.append(take_sheets(target))
    return join(row, "decode@x", pieces, sheets)


@pytest.mark.slow
def test_ranges_put_together_are_what_one_pass_gives(film: Path, config: Path, tmp_path: Path) -> None:
    plan = load_plan("film", config)
    assert isinstance(plan.decode.stage, Decode)
    whole = in_ranges(film, plan, tmp_path, [0.0])
    assert whole.video["num_shots"] == 9
    assert whole.clips.num_rows > 15
    divided = in_ranges(film, plan, tmp_path, [0.0, 12.0, 24.0, 36.0, 48.0])
    assert divided.video == whole.video
    assert divided.clips.equals(whole.clips)
    assert divided.frames.equals(whole.frames)


@pytest.mark.slow
def test_a_range_beyond_the_end_is_empty(film: Path, config: Path, tmp_path: Path) -> None:
    plan = load_plan("film", config)
    whole = in_ranges(film, plan, tmp_path, [0.0])
    longer = in_ranges(film, plan, tmp_path, [0.0, 48.0, 600.0, 612.0])
    assert longer.video == whole.video
    assert longer.clips.equals(whole.clips)


def decoded_ranges(output: Path) -> list[str]:
    return sorted(path.stem for path in output.glob("ranges/*/*.parquet"))


@pytest.mark.slow
def test_a_run_divides_a_long_film_and_says_the_same_as_one_pass(film: Path, config: Path, tmp_path: Path) -> None:
    metrics = run("film", [str(film)], tmp_path / "ranges", config=str(config), engine="local").metrics
    assert metrics["videos_decoded"] == 1
    assert not (tmp_path / "ranges" / "ranges").exists()
    config.write_text(PIPELINE.replace("grid_s: 6", "grid_s: 6, isolate: false"))  # then it is one pass
    run("film", [str(film)], tmp_path / "whole", config=str(config), engine="local")
    assert contents(tmp_path / "ranges") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_ray_decodes_ranges_in_parallel_with_the_same_result(film: Path, config: Path, tmp_path: Path) -> None:
    run("film", [str(film)], tmp_path / "local", config=str(config), engine="local")
    command = [sys.executable, "-m", "curation.cli", "run", "film", "--config", str(config), "--input", str(film)]
    subprocess.run([*command, "--output", str(tmp_path / "ray")], check=True, capture_output=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_a_run_that_ends_within_a_film_goes_on_there(
    film: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "out", []
    original = DecodeRange._decode

    def until_the_third(self: DecodeRange, name: str, row: dict[str, Any]) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise CutroomError("the power fails")
        return original(self, name, row)

    monkeypatch.setattr(DecodeRange, "_decode", until_the_third)
    with pytest.raises(CutroomError):
        run("film", [str(film)], output, config=str(config), engine="local")
    assert len(decoded_ranges(output)) == 2
    run("film", [str(film)], output, config=str(config), engine="local")
    assert len(calls) == 3 + 2  # four ranges: the two that were done are not decoded again
    run("film", [str(film)], tmp_path / "undisturbed", config=str(config), engine="local")
    assert contents(output) == contents(tmp_path / "undisturbed")


def test_ranges_of_other_settings_are_not_used(film: Path, config: Path, tmp_path: Path) -> None:
    store, plan = Store(tmp_path / "out"), load_plan("film", config)
    row = {"video": str(film), "video_id": "0" * 24, "duration_s": 50.0, "bytes": film.stat().st_size}
    step = DecodeRange(plan, str(store.root), "/")
    RangeStore(store.root, plan).begin()
    parts = range_parts([row], 6.0)
    assert [part.id[25:] for part in parts] == [
        "00000-00002-00004",
        "00002-00004-00004",
        "00004-00006-00004",
        "00006-end-00004",
    ]
    list(LocalEngine()(parts[:1], [step]))
    assert len(decoded_ranges(store.root)) == 1
    assert RangeStore(store.root, plan).take(row, "m") is None  # one of four
    config.write_text(PIPELINE.replace("max_clip_s: 3", "max_clip_s: 4"))
    RangeStore(store.root, load_plan("film", config)).begin()
    assert decoded_ranges(store.root) == []


@pytest.mark.slow
def test_a_damaged_film_is_decoded_in_one_pass(film: Path, config: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [p for p in container.demux(video=0) if p.pos is not None and p.size > 200]
    middle = packets[len(packets) // 2]
    data[middle.pos + 5 : middle.pos + 160] = bytes(155)
    damaged.write_bytes(data)
    run("film", [str(damaged)], tmp_path / "ranges", config=str(config), engine="local", shards=False)
    config.write_text(PIPELINE.replace("grid_s: 6", "grid_s: 6, isolate: false"))
    run("film", [str(damaged)], tmp_path / "whole", config=str(config), engine="local", shards=False)
    [video] = Store(tmp_path / "ranges").videos().to_pylist()
    assert video["status"] == "done"
    assert video["error"]
    assert contents(tmp_path / "ranges") == contents(tmp_path / "whole")


def test_the_length_that_a_file_claims_buys_no_more_ranges_than_its_size() -> None:
    row = {"video": "x", "video_id": "2" * 24, "duration_s": 9e8, "bytes": 3 << 20}
    assert len(range_parts([row], 120.0)) == 3


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(6, []), (7.5, [2, 2]), (12, [3, 3]), (20, [3, 3, 2, 2]), (36, [3, 3, 2, 2, 2, 2, 2, 2])],
)
def test_two_workers_finish_the_ranges_of_a_film_together(minutes: float, expected: list[int]) -> None:
    row = {"video": "x", "video_id": "2" * 24, "duration_s": minutes * 60, "bytes": 1 << 30}
    spans = [span(part.id, 120.0) for part in range_parts([row], 120.0)]
    assert [round((min(high, minutes * 60) - low) / 120) for low, high in spans] == expected
    edges = [edge for span in sorted(spans) for edge in span]
    assert edges[1:-1:2] == edges[2::2]
    assert not spans or (edges[0], edges[-1]) == (0.0, math.inf)


def test_ranges_are_no_shorter_than_two_clips() -> None:
    assert Decode(max_clip_s=400.0).grid_s == 800.0
    assert Decode(max_clip_s=None).grid_s == Decode().grid_s == 120.0


@pytest.mark.slow
def test_clips_of_a_film_that_moved_meanwhile_know_where_it_lies(film: Path, config: Path, tmp_path: Path) -> None:
    plan, store = load_plan("film", config), Store(tmp_path)
    row = {"video": str(film), "video_id": "3" * 24, "duration_s": 50.0, "bytes": film.stat().st_size}
    ranges = RangeStore(store.root, plan)
    ranges.begin()
    list(LocalEngine()(range_parts([row], 6.0), [DecodeRange(plan, str(store.root), "/")]))
    taken = ranges.take({**row, "video": "elsewhere.mp4"}, "m")
    assert taken is not None
    assert set(taken.clips["video"].to_pylist()) == {"elsewhere.mp4"}
    ranges.sheets(decoded_ranges(store.root)[0]).write_bytes(b"")  # torn
    assert ranges.take(row, "m") is None


def test_what_goes_wrong_in_a_range_is_left_to_one_pass(
    film: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(self: Isolated, *args: Any) -> Any:
        raise OverflowError("unforeseen")

    monkeypatch.setattr(Isolated, "call", odd)
    plan, store = load_plan("film", config), Store(tmp_path)
    row = {"video": str(film), "video_id": "4" * 24, "duration_s": 50.0, "bytes": film.stat().st_size}
    ranges = RangeStore(store.root, plan)
    ranges.begin()
    list(LocalEngine()(range_parts([row], 6.0), [DecodeRange(plan, str(store.root), "/")]))
    assert ranges.take(row, "m") is None


@pytest.mark.slow
def test_a_range_part_says_how_much_footage_it_is(film: Path, config: Path, tmp_path: Path) -> None:
    plan, store = load_plan("film", config), Store(tmp_path)
    step = DecodeRange(plan, str(store.root), "/")
    RangeStore(store.root, plan).begin()
    row = {"video": os.fspath(film), "video_id": "1" * 24, "duration_s": 50.0, "bytes": film.stat().st_size}
    parts = range_parts([row], 6.0)
    done: list[Part] = list(LocalEngine()(parts[-1:], [step]))
    assert done[0].videos["duration_s"].to_pylist() == [14.0]
    assert isinstance(done[0].clips, pa.Table)
