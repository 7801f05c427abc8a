"""Whose caption goes where: through whole runs, with a server that answers badly and runs that are killed."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioning.endpoint import Endpoint
from captioning.journal import Journal
from captioning.question import Question
from captioning.requests import Reply, Request
from captioning.stages import Caption, FrameCaptions, ShortCaption, spread
from curation.config import load_plan
from curation.engine import EngineName
from curation.errors import ConfigError, StageError, UsageError
from curation.report import exit_status
from curation.run import run
from curation.stage import run_stage
from curation.table import CAPTIONS, Store
from tests.captioning.server import Behaviour, Server, coded_film, serving
from tests.helpers import batch_for

CLIP_S = 0.5


def films(folder: Path, *, num_films: int, num_clips: int) -> Path:
    folder.mkdir()
    for i in range(num_films):
        coded_film(folder / f"{i:03d}.mp4", i * 1000, num_clips=num_clips, clip_s=CLIP_S)
    return folder


def pipeline(path: Path, **models: str) -> Path:
    """A pipeline of version 1; each stage has the arguments given, as YAML."""
    stages = "\n".join(f"    - {name}: {{{arguments}}}" for name, arguments in models.items())
    decode = f"decode: {{detector: none, max_clip_s: {CLIP_S}, grid_s: {CLIP_S}, sheet_fps: 4, isolate: false}}"
    path.write_text(f"told:\n  stages:\n    - {decode}\n{stages}\n")
    return path


def version_1(path: Path, server: Server, **endpoint: Any) -> Path:
    settings = json.dumps({"url": server.url, "concurrency": 16, **endpoint})
    each = f"model: teller, endpoint: {settings}"
    return pipeline(path, frame_captions=f"{each}, max_frames: 2", short_caption=f"{each}, see: images", caption=each)


def expected(row: dict[str, Any]) -> int:
    """The number that is shown in a clip."""
    return int(row["video"].split("/")[-1][:3]) * 1000 + round(row["start_s"] / CLIP_S)


def check_captions(output: Path, count: int) -> None:
    rows = Store(output).clips().to_pylist()
    assert len(rows) == len({row["clip_id"] for row in rows}) == count
    for row in rows:
        token = f"number {expected(row)}"
        assert row["status"] == "kept", row["error"]
        assert [frame["text"] for frame in row["frame_captions"]] == [token] * 2
        assert row["short_caption"] == token
        assert row["caption"] == token
        assert (row["caption_version"], row["caption_model"]) == ("v1", "teller")
        assert row["caption_prompt"].startswith("summary-1#")
        assert row["frame_captions_usage"]["calls"] == 2
        assert row["frame_captions_usage"]["prompt_tokens"] == 220


@pytest.mark.parametrize(
    ("engine", "num_films", "num_clips"),
    [
        ("local", 4, 15),
        pytest.param("local", 20, 100, marks=pytest.mark.slow),
        pytest.param("ray", 20, 100, marks=pytest.mark.slow),
    ],
)
def test_nobodys_caption_goes_to_another_clip(
    tmp_path: Path, engine: EngineName, num_films: int, num_clips: int
) -> None:
    """The server answers out of order, slowly, and often not at all."""
    footage = films(tmp_path / "films", num_films=num_films, num_clips=num_clips)
    with serving(Behaviour(delay_s=0.02, errors=0.1, dropped=0.05)) as server:
        config = version_1(tmp_path / "p.yaml", server, concurrency=32, retries=8)
        # In a process of its own, because Ray stays up in the process that started it.
        asked = command(config, footage, tmp_path / "out", engine)
        done = subprocess.run(asked, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        assert set(server.answered.values()) == {1}
    check_captions(tmp_path / "out", num_films * num_clips)
    assert not list((tmp_path / "out").glob("pending/*")), "what was kept for a resume is still there"


def command(config: Path, footage: Path, output: Path, engine: EngineName = "ray") -> list[str]:
    where = ["--input", str(footage), "--output", str(output), "--config", str(config)]
    return [sys.executable, "-m", "curation.cli", "run", "told", *where, "--engine", engine, "--no-shards"]


@pytest.mark.slow
def test_a_run_that_is_killed_asks_for_no_caption_twice(tmp_path: Path) -> None:
    footage = films(tmp_path / "films", num_films=6, num_clips=10)
    output, concurrency = tmp_path / "out", 4
    with serving(Behaviour(delay_s=0.05)) as server:
        config = version_1(tmp_path / "p.yaml", server, concurrency=concurrency)
        for stop_after in (15, 60, 130, 200):
            going = subprocess.Popen(
                command(config, footage, output, "local"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while server.answered.total() < stop_after and going.poll() is None:
                time.sleep(0.01)
            going.send_signal(signal.SIGKILL)
            going.wait()
        run("told", [str(footage)], output, config=str(config), engine="local", shards=False)
        again = sum(count - 1 for count in server.answered.values())
        # What the server had said, or was saying, when the run was killed cannot be known to the next run.
        assert again <= 4 * 2 * concurrency
        assert server.answered.total() >= 4 * 60
    check_captions(output, 60)


def test_a_clip_that_the_server_refuses_fails_with_its_reason_and_is_not_asked_again(tmp_path: Path) -> None:
    footage = films(tmp_path / "films", num_films=2, num_clips=5)
    output = tmp_path / "out"
    with serving(Behaviour(refuses="number 1002")) as server:
        config = version_1(tmp_path / "p.yaml", server, concurrency=4, retries=0)
        summary = run("told", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert (summary.clips["kept"], summary.clips["failed"], summary.num_waiting) == (9, 1, 0)
        before = server.num_requests
        run("told", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert server.num_requests == before, "it was asked again"
    (failed,) = [row for row in Store(output).clips().to_pylist() if row["status"] == "failed"]
    assert expected(failed) == 1002
    assert failed["error"].startswith("frame_captions: RefusedError: ")
    assert "this question is too long" in failed["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "breaks",
    [{"gone_after": 47}, {"status_after": (47, 401)}, {"status_after": (47, 404)}, {"status_after": (47, 429)}],
    ids=["gone", "wrong key", "wrong model", "429 for ever"],
)
def test_what_a_broken_server_left_open_is_done_by_the_next_run(tmp_path: Path, breaks: dict[str, Any]) -> None:
    footage = films(tmp_path / "films", num_films=4, num_clips=5)
    output = tmp_path / "out"
    with serving(Behaviour(**breaks)) as server:
        config = version_1(tmp_path / "p.yaml", server, concurrency=4, retries=0)
        summary = run("told", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert exit_status(summary) == 1
        assert summary.clips["failed"] == summary.num_waiting > 0
        assert summary.waiting_for is not None
        assert server.url in summary.waiting_for
        failed = [row for row in Store(output).clips().to_pylist() if row["status"] == "failed"]
        assert all(row["error"].split(":")[1] == " NotNowError" and row["caption"] is None for row in failed)
        server.behaviour = Behaviour()
        summary = run("told", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert exit_status(summary) == 0
        assert set(server.answered.values()) == {1}, "what had been answered was asked for again"
    check_captions(output, 20)


def test_an_endpoint_that_is_not_there_stops_the_request_before_work(tmp_path: Path) -> None:
    footage = films(tmp_path / "films", num_films=1, num_clips=1)
    with serving() as server:
        config = version_1(tmp_path / "p.yaml", server)
    with pytest.raises(ConfigError, match=r"p\.yaml:4:\d+: stage 'frame_captions': nothing answers at"):
        run("told", [str(footage)], tmp_path / "out", config=str(config), engine="local")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_prompt_asks_again_and_another_url_does_not(tmp_path: Path) -> None:
    footage = films(tmp_path / "films", num_films=2, num_clips=2)
    output = tmp_path / "out"

    def asked(server: Server, config: Path) -> int:
        before = server.answered.total()
        run("told", [str(footage)], output, config=str(config), engine="local", shards=False)
        return server.answered.total() - before

    with serving() as server:
        config = version_1(tmp_path / "p.yaml", server)
        assert asked(server, config) == 4 * (2 + 1 + 1)
        assert asked(server, config) == 0
        (tmp_path / "own.txt").write_text("Short: $short_caption")
        config.write_text(config.read_text().replace("- caption: {", f"- caption: {{prompt: {tmp_path}/own.txt, "))
        assert asked(server, config) == 4
        (tmp_path / "own.txt").write_text("In short: $short_caption")
        assert asked(server, config) == 4
        row = Store(output).clips().to_pylist()[0]
        assert row["caption_prompt"].startswith("own#")
    with serving() as other:
        config.write_text(config.read_text().replace(server.url, other.url))
        assert asked(other, config) == 0


def test_a_caption_keeps_what_it_was_written_from(tmp_path: Path) -> None:
    """And the language model gets the frames' captions with their times, in order, and the camera in words."""
    seen: list[Request] = []
    stage = Caption(model="tests.captioning.scripted:describe", camera=True)
    batch = batch_for(stage, 1)
    frames = [{"t_s": 0.25, "text": "a dog"}, {"t_s": 1.25, "text": "a cat"}]
    field = CAPTIONS.field("frame_captions")
    batch = batch.set_column(batch.schema.get_field_index("frame_captions"), field, pa.array([frames], field.type))
    stage.setup()
    original = stage._backend.ask
    stage._backend.ask = lambda requests: (seen.extend(requests), original(requests))[1]  # type: ignore[method-assign,func-returns-value]
    done = run_stage(stage, batch, mark="caption@1")
    assert "0.2: a dog\n1.2: a cat" in seen[0].prompt
    assert "the camera pans left" in seen[0].prompt
    assert "$" not in seen[0].prompt
    assert done["caption_usage"][0].as_py()["calls"] == 1


def test_whatever_a_model_says_can_be_stored(tmp_path: Path) -> None:
    """Half a surrogate pair, as JSON may hold it; and what looks like a name of a prompt is none."""
    footage = films(tmp_path / "films", num_films=1, num_clips=2)
    said = "lone \ud800 $camera \u202e<b>\x00"
    with serving(answer=lambda prompt, images: said) as server:
        config = version_1(tmp_path / "p.yaml", server)
        run("told", [str(footage)], tmp_path / "out", config=str(config), engine="local", shards=False)
        assert server.num_requests == 2 * (2 + 1 + 1)
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert [row["caption"] for row in rows] == [said.replace("\ud800", "?")] * 2
    assert [row["error"] for row in rows] == [None] * 2


def test_thoughts_go_into_no_caption_and_no_note(tmp_path: Path) -> None:
    """Nor out of the journal of a run that was killed before they were dropped."""
    footage = films(tmp_path / "films", num_films=1, num_clips=2)
    with serving(answer=lambda prompt, images: "<think>\nDogs.\n</think>\n\nA dog runs.") as server:
        config = version_1(tmp_path / "p.yaml", server)
        run("told", [str(footage)], tmp_path / "out", config=str(config), engine="local", shards=False)
        notes = [question for question in server.answered if "Dogs" in question]
    assert notes == []
    for row in Store(tmp_path / "out").clips().to_pylist():
        assert {row["caption"], row["short_caption"], *(f["text"] for f in row["frame_captions"])} == {"A dog runs."}
    journal = Journal(tmp_path, "caption")
    (tmp_path / "v.caption.jsonl").write_text(json.dumps({"key": "k", "text": "<think>Dogs.</think>A dog."}))
    assert journal.read("v") == {"k": Reply(text="A dog.")}


def test_captions_of_single_pictures_are_no_captions_of_a_video() -> None:
    """A table from when servers were sent pictures whatever the stage said is not taken for done."""
    there = Endpoint(url="http://nowhere/v1")
    assert ShortCaption(model="m", endpoint=there).settings()["sent_as"] == "mp4"
    for stage in (ShortCaption(model="m", endpoint=there, see="images"), ShortCaption(model="a.b:c")):
        assert "sent_as" not in stage.settings()


def test_clips_go_to_a_server_as_videos_or_as_pictures(tmp_path: Path) -> None:
    footage = films(tmp_path / "films", num_films=2, num_clips=2)
    with serving() as server:
        told = f"model: teller, endpoint: {json.dumps({'url': server.url})}"
        config = pipeline(tmp_path / "p.yaml", short_caption=told, caption=f"{told}, version: direct, see: images")
        run("told", [str(footage)], tmp_path / "out", config=str(config), engine="local", shards=False)
        sent = ["video/mp4" in question for question in server.answered]
    assert (sent.count(True), sent.count(False)) == (4, 4)
    for row in Store(tmp_path / "out").clips().to_pylist():
        assert row["short_caption"] == row["caption"] == f"number {expected(row)}"


@pytest.mark.parametrize("line", [b"12", b"[1]", b"null", b'"x"', b'{"key": [1], "text": "a"}', b'{"key": "k', b"\0\0"])
def test_a_line_of_the_journal_that_is_damaged_costs_its_answer_only(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path, "caption")
    journal.add("v", "one", Reply(text="a"))
    with open(tmp_path / "v.caption.jsonl", "ab") as file:
        file.write(b"\n" + line)
    journal.add("v", "two", Reply(text="b"))
    assert journal.read("v") == {"one": Reply(text="a"), "two": Reply(text="b")}


@pytest.mark.parametrize("fails", ["read", "add"])
def test_a_journal_that_cannot_be_kept_stops_the_run(tmp_path: Path, fails: str) -> None:
    """Or the clips would be halved, and each half asked about again, for answers that are lost as well."""
    asked: list[Request] = []
    stage = FrameCaptions(model="tests.captioning.scripted:describe")
    batch = batch_for(stage, 4)
    place = tmp_path / "pending"
    if fails == "read":
        (place / f"{batch['video_id'][0].as_py()}.frame_captions.jsonl").mkdir(parents=True)
    else:
        place.write_text("a file where the folder should be")
    stage.keep_in(place)
    stage.setup()
    original = stage._backend.ask
    stage._backend.ask = lambda requests: (asked.extend(requests), original(requests))[1]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(StageError, match=r"pending.*mend that and run again"):
        run_stage(stage, batch, mark="frame_captions@1")
    assert len({request.digest() for request in asked}) == len(asked), "it asked again"


def test_without_notes_there_is_nothing_to_summarise() -> None:
    stage = Caption(model="tests.captioning.scripted:describe")
    stage.setup()
    batch = batch_for(stage, 2)
    for name in ("frame_captions", "short_caption"):
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, batch.schema.field(name), pa.nulls(2, batch.schema.field(name).type))
    done = run_stage(stage, batch, mark="caption@1")
    assert done["caption"].to_pylist() == [None, None]
    assert done["status"].to_pylist() == ["kept", "kept"]


def test_frames_of_which_nothing_was_said_are_no_notes() -> None:
    stage = Caption(model="tests.captioning.scripted:describe")
    clip: dict[str, Any] = {
        "frame_captions": [{"t_s": 0.5, "text": ""}, {"t_s": 1.5, "text": ""}],
        "short_caption": None,
    }
    assert stage.requests(clip) == []
    clip["frame_captions"][1]["text"] = "a dog\n\n1.0: runs"
    assert "Frames:\n1.5: a dog 1.0: runs\n" in stage.requests(clip)[0].prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Write something about $short_caption.", r"camera: true, and the prompt .* has no \$camera"),
        ("Write something nice, $camera.", "nothing to sum up"),
    ],
)
def test_a_prompt_that_drops_what_it_is_given_is_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.txt").write_text(text, encoding="utf-8-sig")
    stage = Caption(model="tests.captioning.scripted:describe", prompt=str(tmp_path / "own.txt"), camera=True)
    with pytest.raises(UsageError, match=message):
        stage.check()
    assert stage.filled.text == text, "the mark of the byte order is no part of a prompt"


def test_version_2_is_asked_as_a_model_is_taught_by_default() -> None:
    model = "tests.captioning.scripted:describe"
    taught, direct = Caption(model=model, version="v2"), Caption(model=model, version="direct")
    assert dataclasses.replace(taught.question, prompt="?", max_tokens=1) == Question(prompt="?", max_tokens=1)
    assert (direct.question.frames, direct.question.long_side_px) == (16, None)
    assert taught.settings()["long_side_px"] == 420, "another default must be another mark"
    chosen = Caption(model=model, version="v2", max_frames=3, long_side_px=99).question
    assert (chosen.frames, chosen.long_side_px) == (3, 99)


def test_frames_are_spread_over_the_clip() -> None:
    frames = [{"t_s": float(i)} for i in range(10)]
    assert [frame["t_s"] for frame in spread(frames, 2)] == [2, 7]
    assert [frame["t_s"] for frame in spread(frames, 3)] == [1, 5, 8]
    assert spread(frames, 10) == spread(frames, 99) == frames


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Caption(model="tests.captioning.scripted:describe", prompt="summary"), "no prompt 'summary'"),
        (Caption(model="tests.captioning.scripted:nobody"), "cannot be loaded"),
        (Caption(model="tests.captioning.server:HEIGHT"), "is not a function"),
        (Caption(model="a.b:c", version="v2", camera=True), "camera: true is for version v1"),
        (Caption(model="tests.captioning.scripted:describe", version="v2", prompt="summary-1"), "which nobody fills"),
        (FrameCaptions(model="tests.captioning.scripted:describe", prompt="/no/such.txt"), "cannot be read"),
    ],
)
def test_mistakes_are_said_before_any_work(stage: Caption, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage.check()


def test_pipelines_with_captioners_load(tmp_path: Path) -> None:
    model = "model: tests.captioning.scripted:describe"
    config = pipeline(tmp_path / "p.yaml", frame_captions=model, short_caption=model, caption=model)
    plan = load_plan("told", config)
    assert plan.scores == []
    assert {"caption_usage", "frame_captions_usage", "short_caption_usage"} <= set(plan.clip_schema.names)
    config.write_text(config.read_text().replace("- caption: {", "- caption: {version: v2, "))
    assert load_plan("told", config).steps[-1].mark != plan.steps[-1].mark
    with pytest.raises(ConfigError, match="camera_motion"):
        config.write_text(config.read_text().replace("version: v2, ", "camera: true, "))
        load_plan("told", config)
