"""A captioner judged by the captions of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from captioning import evaluate as evaluation
from captioning.backends import CallableBackend
from captioning.evaluate import evaluate, read_truth_file
from captioning.question import RECORD, Question
from captioning.requests import Reply, Request
from captioning.world import make_world, read_truth
from curation.cli import app
from curation.errors import CutroomError, UsageError
from curation.table import USAGE, Store
from tests.captioning.server import Behaviour, serving

ECHO = "tests.captioning.test_evaluate:red_circles"


def red_circles(request: Request) -> str:
    return "A red circle moves left across a desert."


def fails(request: Request) -> str:
    raise RuntimeError("no mood")


class Moody:
    """Answers every second question."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, request: Request) -> str:
        self.asked += 1
        return red_circles(request) if self.asked % 2 else fails(request)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "out", 40).root


@pytest.fixture(scope="module")
def truth(world: Path) -> dict[str, dict[str, str]]:
    return {key: {"colour": scene.colour, "shape": scene.shape} for key, scene in read_truth(world).items()}


def test_recall_is_the_share_of_true_words(world: Path, truth: dict[str, dict[str, str]]) -> None:
    done = evaluate(world, ECHO, question=Question(prompt="?"), truth=truth)
    assert (done.num_clips, done.held_out, done.errors) == (40, None, {})
    assert done.taught.attributes == {"colour": 1.0, "shape": 1.0}
    assert done.model.attributes["colour"] == sum(facts["colour"] == "red" for facts in truth.values()) / 40
    assert done.taught.token_f1 is None
    assert done.model.token_f1 is not None
    assert 0.4 < done.model.token_f1 < 1
    assert done.taught_cost is None
    assert done.model_cost.calls == 1


def test_what_the_run_spent_on_captions_is_compared(tmp_path: Path) -> None:
    store = make_world(tmp_path / "out", 8)
    ((part_id, clips),) = store.parts("clips")
    for name, calls in (("frame_captions_usage", 4), ("caption_usage", 1), ("asked_lecture_usage", 6)):
        usage = {"calls": calls, "prompt_tokens": 100 * calls, "completion_tokens": 10, "cut_off": False}
        clips = clips.append_column(name, pa.array([usage] * 8, USAGE))
    store.write("clips", part_id, clips)
    done = evaluate(store.root, ECHO)
    assert done.taught_cost is not None
    assert (done.taught_cost.calls, done.taught_cost.prompt_tokens, done.taught_cost.completion_tokens) == (5, 500, 20)


def test_a_model_that_fails_is_said_and_not_left_out(world: Path) -> None:
    done = evaluate(world, "tests.captioning.test_evaluate:fails", limit=5)
    assert done.model.failures == done.num_clips == len(done.errors) == 5
    assert set(done.errors.values()) == {"no mood"}


def test_pictures_of_a_few_clips_are_in_memory_at_a_time(
    world: Path, truth: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = evaluate(world, ECHO, truth=truth), list[int]()
    original = CallableBackend.ask

    def counting(self: CallableBackend, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Exception]]:
        asked.append(len(requests))
        return original(self, requests)

    monkeypatch.setattr(CallableBackend, "ask", counting)
    monkeypatch.setattr(evaluation, "_AT_A_TIME", 7)
    assert evaluate(world, ECHO, truth=truth) == whole
    assert asked == [7] * 5 + [5]


def test_both_captions_can_be_looked_at(world: Path, tmp_path: Path) -> None:
    evaluate(world, ECHO, table=tmp_path / "both.parquet", limit=7)
    rows = pq.read_table(tmp_path / "both.parquet").to_pylist()
    captions = {row["clip_id"]: row["caption"] for row in Store(world).clips().to_pylist()}
    assert len(rows) == 7
    for row in rows:
        assert row["taught_caption"] == captions[row["clip_id"]]
        assert row["model_caption"] == "A red circle moves left across a desert."


def test_the_command_prints_both_sides(world: Path, tmp_path: Path, truth: dict[str, dict[str, str]]) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    arguments = ["caption", "eval", str(world), "--model", ECHO, "--truth", str(tmp_path / "truth.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for line in ("40 clips", "token_f1", "chrf", "rouge_l", "  colour", "calls per clip"):
        assert line in done.stdout
    (tmp_path / "truth.json").write_text(json.dumps({key: {"[/]": "red"} for key in truth}))
    done = CliRunner().invoke(app, arguments)
    assert "  [/]" in done.stdout, done.exception
    done = CliRunner().invoke(app, [*arguments, "--json", "--limit", "3"])
    assert json.loads(done.stdout)["num_clips"] == 3


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("/proc/x.parquet", "cannot be written"),
        ("{}", "--table is meant to be a file in a folder that exists"),
        ("{}/nowhere/x.parquet", "--table is meant to be a file in a folder that exists"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_a_question_is_asked(
    world: Path, tmp_path: Path, place: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **named: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(evaluation, "open_backend", never)
    table = place.format(tmp_path)
    done = CliRunner().invoke(app, ["caption", "eval", str(world), "--model", ECHO, "--table", table])
    assert isinstance(done.exception, UsageError), done.exception
    assert table in str(done.exception)
    assert says in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_costs_the_table_and_not_the_figures(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_table(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation.pq, "write_table", write_table)
    table = str(tmp_path / "both.parquet")
    done = CliRunner().invoke(app, ["caption", "eval", str(world), "--model", ECHO, "--table", table, "--json"])
    assert isinstance(done.exception, CutroomError)
    assert f"{table} cannot be written: OSError: [Errno 28] No space left" in str(done.exception)
    assert json.loads(done.stdout)["num_clips"] == 40


def test_the_command_ends_with_status_1_where_a_clip_has_failed(world: Path) -> None:
    model = "tests.captioning.test_evaluate:Moody"
    done = CliRunner().invoke(app, ["caption", "eval", str(world), "--model", model, "--limit", "5", "--json"])
    assert len(json.loads(done.stdout)["errors"]) == 2
    assert done.exit_code == 1


def test_a_captioner_at_a_server_is_judged(world: Path) -> None:
    seen: list[int] = []

    def answer(prompt: str, images: list[bytes]) -> str:
        seen.append(len(images))
        return "A red circle moves left across a desert."

    with serving(Behaviour(models=("writer",), unsupported=frozenset({"seed"}), key="secret"), answer) as server:
        at = ["--model", "writer", "--endpoint", server.url, "--key-env", "WRITER_KEY", "--omit", "seed"]
        arguments = ["caption", "eval", str(world), *at, "--limit", "5", "--json"]
        done = CliRunner().invoke(app, arguments, env={"WRITER_KEY": "secret"})
        assert done.exit_code == 0, done.exception
        wrong = CliRunner().invoke(app, [*arguments[:4], "reader", *arguments[5:]], env={"WRITER_KEY": "secret"})
        assert "has no model 'reader'" in str(wrong.exception)
    figures = json.loads(done.stdout)
    here = evaluate(world, ECHO, limit=5)
    assert figures["model"] == json.loads(json.dumps(dataclasses.asdict(here.model)))
    assert seen == [8] * 5
    assert figures["model_cost"] == {"calls": 1.0, "prompt_tokens": 810.0, "completion_tokens": 5.0}


def test_mistakes_are_said(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be loaded"):
        evaluate(world, "tests.captioning.test_evaluate:nobody")
    (tmp_path / "truth.json").write_text("[1]")
    with pytest.raises(UsageError, match="no JSON object"):
        read_truth_file(tmp_path / "truth.json")
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(UsageError):
        evaluate(world, str(tmp_path))
