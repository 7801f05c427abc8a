"""Yes/no questions about clips: what is asked, what the answers become, and that nobody is asked twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioning.ask import KINDS, Ask, yes_or_no
from captioning.requests import Request
from curation.config import load_plan
from curation.errors import ConfigError, NotNowError, UsageError
from curation.run import run
from curation.stage import run_stage
from curation.summary import score_table
from curation.table import Store
from tests.captioning import tiny
from tests.captioning.server import Behaviour, coded_film, read_picture, serving
from tests.helpers import batch_for, contents

CLIP_S = 0.5
SCRIPTED = "tests.captioning.scripted:judge"
SIX = ["edited", "no_coherent_motion", "low_quality", "lecture", "text_dominated", "screen_noise"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", True),
        ("No", False),
        (" Yes.\n", True),
        ("NO!", False),
        ("**Yes**", True),
        ('"No."', False),
        ("Answer: yes", True),
        ("The answer is no.", False),
        ("Yes, there is a logo.", True),
        ("No, no text is shown", False),
        ("No\n\nThe clip shows a dog.", False),
        ("Yes - a lecture", True),
        ("", None),
        ("Yes and no", None),
        ("yes/no", None),
        ("Yes, but then no.", None),
        ("Yes?", None),
        ("No idea.", None),
        ("No-one talks", None),
        ("Not that I can see", None),
        ("Yesterday", None),
        ("It is a lecture.", None),
        ("I cannot say yes", None),
        ("1", None),
        ("Yes, there is no motion.", True),
        ("Yes, and no one moves.", True),
        ("No, I cannot tell.", None),
        ("No. I can't see any frames.", None),
        ("No, I am unable to see it.", None),
        ("Yes because it is", True),
        ("yes it is", True),
        ("Yes—there", True),
        ("Yes…", True),
        ("- Yes", True),
        ("Yes. No.", None),
        ("Yes, or no", None),
        ("No\nYes", None),
    ],
)
def test_an_answer_is_yes_or_no_or_unknown(text: str, said: bool | None) -> None:
    assert yes_or_no(text) is said


def test_each_question_is_asked_by_itself_about_the_same_frames() -> None:
    stage = Ask(model=SCRIPTED, max_frames=2, long_side_px=32)
    (clip,) = batch_for(stage, 1).to_pylist()
    asked = stage.requests(clip)
    assert list(KINDS) == SIX
    assert len(asked) == 6
    for request, text in zip(asked, KINDS.values(), strict=True):
        assert text in request.prompt
        assert request.prompt.endswith("Answer with one word: yes or no.")
        assert request.times == (clip["frames"][0]["t_s"], clip["frames"][2]["t_s"])
        assert request.images == asked[0].images
        assert (request.video, request.max_tokens) == (True, 16)
    assert [request.video for request in Ask(model=SCRIPTED, see="images").requests(clip)] == [False] * 6


def answers(monkeypatch: pytest.MonkeyPatch, said: dict[str, str | Exception]) -> Ask:
    """A stage whose questions are answered like this."""
    stage = Ask(model=SCRIPTED, questions=[{name: f"{name}?"} for name in said])

    def answer(request: Request) -> str:
        (found,) = (what for name, what in said.items() if f"{name}?" in request.prompt)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("tests.captioning.scripted.judge", answer)
    stage.setup()
    return stage


def test_answers_become_numbers_and_what_is_neither_is_unknown_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = answers(monkeypatch, {"a": "Yes.", "b": "no", "c": " It depends. "})
    done = run_stage(stage, batch_for(stage, 1), mark="m@1").to_pylist()[0]
    assert [done[f"asked_{name}"] for name in "abc"] == [1.0, 0.0, None]
    assert [done[f"asked_{name}_reply"] for name in "abc"] == [None, None, "It depends."]
    assert done["status"] == "kept"
    prompts = [done[f"asked_{name}_usage"]["prompt"] for name in "abc"]
    assert len(set(prompts)) == 3, "the digest is not that of the question"
    assert all(prompt.startswith("ask-1#") for prompt in prompts)
    assert [done[f"asked_{name}_usage"]["calls"] for name in "abc"] == [1, 1, 1]


def test_a_model_that_fails_costs_the_clip_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = answers(monkeypatch, {"a": "yes", "b": NotNowError("asleep")})
    done = run_stage(stage, batch_for(stage, 1), mark="m@1").to_pylist()[0]
    assert (done["asked_a"], done["asked_b"], done["status"]) == (None, None, "failed")
    assert done["error"] == "ask(a,b): NotNowError: asleep"
    assert done["measured"] == []


def test_a_clip_without_frames_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = answers(monkeypatch, {"a": "yes"})
    batch = batch_for(stage, 1)
    field = batch.schema.field("frames")
    batch = batch.set_column(batch.schema.get_field_index("frames"), field, pa.array([[]], field.type))
    done = run_stage(stage, batch, mark="m@1").to_pylist()[0]
    assert [done[name] for name in stage.writes.names] == [None] * 3
    assert done["status"] == "kept"


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (["lectur"], "no question 'lectur'. Did you mean 'lecture'?"),
        ([{"a dog": "Is there a dog?"}], "the question 'a dog' becomes a column"),
        ([{"dog": " "}], "the question 'dog' is empty"),
        (["lecture", {"lecture": "Is it one?"}], "two questions are called 'lecture'"),
        ([{"dog": "Is it one?", "Dog": "Is it one?"}], "two questions are called 'dog'"),
        ([{}], "a question is empty"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_mistake(questions: list[str | dict[str, str]], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ask(model=SCRIPTED, questions=questions).check()
    assert message in str(caught.value)


def test_a_prompt_without_the_question_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Yes or no?")
    with pytest.raises(UsageError, match=r"has no \$question"):
        Ask(model=SCRIPTED, prompt=str(tmp_path / "own.txt")).check()


def test_another_wording_of_a_question_or_of_the_prompt_is_another_measurement(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("$question Yes or no?")
    stages = [
        Ask(model=SCRIPTED, questions=["lecture"]),
        Ask(model=SCRIPTED, questions=[{"lecture": "Is it one?"}]),
        Ask(model=SCRIPTED, questions=["lecture"], prompt=str(tmp_path / "own.txt")),
        Ask(model=SCRIPTED, questions=["lecture"], max_frames=4),
    ]
    assert len({stage.mark({}) for stage in stages}) == 4
    assert Ask(model=SCRIPTED, questions=[{"lecture": KINDS["lecture"]}]).mark({}) == stages[0].mark({})


def films(folder: Path, *, num_films: int, num_clips: int) -> Path:
    folder.mkdir()
    for i in range(num_films):
        coded_film(folder / f"{i:03d}.mp4", i * 1000, num_clips=num_clips, clip_s=CLIP_S)
    return folder


def pipeline(path: Path, *stages: str, keep: str = "{}") -> Path:
    decode = f"decode: {{detector: none, max_clip_s: {CLIP_S}, grid_s: {CLIP_S}, sheet_fps: 4, isolate: false}}"
    lines = "".join(f"    - {stage}\n" for stage in (decode, *stages))
    path.write_text(f"asked:\n  stages:\n{lines}  keep: {keep}\n")
    return path


def number_of(row: dict[str, Any]) -> int:
    """The number that is shown in a clip."""
    return int(row["video"].split("/")[-1][:3]) * 1000 + round(row["start_s"] / CLIP_S)


def sharp(prompt: str, images: list[bytes]) -> str:
    """A model that can tell odd numbers and large ones; asked about the sky it does not know what to say."""
    number = read_picture(images[0])
    if "sky" in prompt:
        return "There is no sky, so yes."
    return "Yes." if (number % 2 if "odd" in prompt else number >= 1000) else "No, it is not."


QUESTIONS = "questions: [{odd: 'Is the number odd?'}, {large: 'Is it large?'}, {sky: 'Is the sky blue?'}]"


def test_a_rule_on_an_answer_rejects_the_clip_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    footage, output = films(tmp_path / "films", num_films=2, num_clips=4), tmp_path / "out"
    with serving(answer=sharp) as server:
        asked = f"ask: {{model: teller, endpoint: {{url: '{server.url}', concurrency: 8}}, {QUESTIONS}}}"
        keep = "{asked_odd: {max: 0}, asked_sky: {max: 0, unknown: keep}}"
        config = pipeline(tmp_path / "p.yaml", asked, keep=keep)
        run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert server.answered.total() == 8 * 3
        run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        config.write_text(config.read_text().replace(keep, "{asked_large: {min: 1}}"))
        loose = run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert server.answered.total() == 8 * 3, "it was asked again"
    assert loose.rejected_by == {"asked_large": 4}
    for row in Store(output).clips().to_pylist():
        number = number_of(row)
        assert (row["asked_odd"], row["asked_large"], row["asked_sky"]) == (number % 2, number >= 1000, None)
        assert row["asked_sky_reply"] == "There is no sky, so yes."
        assert (row["status"], row["reason"]) == (("kept", None) if number >= 1000 else ("rejected", "asked_large"))
        assert row["asked_odd_usage"]["prompt_tokens"] == 10 + 100 * 2
    assert score_table(Store(output))["asked_odd"]["unknown"] == 0
    assert not list((output / "pending").glob("*")), "what was kept for a resume is still there"


def test_a_question_in_a_stage_of_its_own_spares_clips_and_can_be_added(tmp_path: Path) -> None:
    footage, output = films(tmp_path / "films", num_films=1, num_clips=6), tmp_path / "out"
    with serving(answer=sharp) as server:
        model = f"model: teller, endpoint: {{url: '{server.url}'}}"
        odd = f"ask: {{{model}, questions: [{{odd: 'Is the number odd?'}}]}}"
        large = f"ask: {{{model}, questions: [{{large: 'Is it large?'}}]}}"
        config = pipeline(tmp_path / "p.yaml", odd, keep="{asked_odd: {max: 0}}")
        run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert server.answered.total() == 6
        config = pipeline(tmp_path / "p.yaml", odd, large, keep="{asked_odd: {max: 0}}")
        run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert server.answered.total() == 6 + 3, "only what is left is asked the new question"
    rows = Store(output).clips().to_pylist()
    assert [row["asked_large"] for row in rows if row["status"] == "kept"] == [0.0] * 3
    assert [row["asked_large"] for row in rows if row["status"] == "rejected"] == [None] * 3


ODD, LARGE, SKY = "odd: 'Is the number odd?'", "large: 'Is it large?'", "sky: 'Is the sky blue?'"


def lists(*stages: list[str]) -> list[str]:
    """Stages as they are written, each with these questions."""
    return [f"ask: {{MODEL, questions: [{', '.join(f'{{{question}}}' for question in asked)}]}}" for asked in stages]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [
        (lists([ODD]), lists([ODD, LARGE]), 1),
        (lists([ODD, LARGE]), lists([SKY, ODD, LARGE]), 1),
        (lists([ODD, LARGE, SKY]), lists([SKY]), 0),
        (lists([ODD, LARGE, SKY]), lists([SKY, ODD, LARGE]), 0),
        (lists([ODD, LARGE]), lists([LARGE, "odd: 'Is it an odd one?'"]), 1),
        (lists([ODD, LARGE]), lists([LARGE], [SKY, ODD]), 1),
        (lists([ODD], [LARGE]), lists([LARGE, ODD]), 0),
    ],
    ids=["added", "added in front", "removed", "reordered", "reworded", "divided", "joined"],
)
def test_only_questions_that_are_new_are_asked_where_others_were_before(
    tmp_path: Path, before: list[str], after: list[str], asked: int
) -> None:
    footage, output = films(tmp_path / "films", num_films=2, num_clips=3), tmp_path / "out"
    with serving(answer=sharp) as server:

        def ask(stages: list[str], into: Path) -> int:
            """Run it; how many questions were asked about each clip."""
            past = server.answered.total()
            model = f"model: teller, endpoint: {{url: '{server.url}'}}"
            config = pipeline(tmp_path / "p.yaml", *(stage.replace("MODEL", model) for stage in stages))
            run("asked", [str(footage)], into, config=str(config), engine="local", shards=False)
            return (server.answered.total() - past) // 6

        ask(before, output)
        assert ask(after, output) == asked
        assert ask(after, output) == 0
        ask(after, tmp_path / "fresh")
    assert contents(output)["clips"] == contents(tmp_path / "fresh")["clips"]


def test_answers_stand_though_their_clip_is_rejected_or_a_new_question_fails(tmp_path: Path) -> None:
    footage, output = films(tmp_path / "films", num_films=1, num_clips=6), tmp_path / "out"
    with serving(answer=sharp) as server:

        def ask(questions: list[str], keep: str = "{}", retries: str = "") -> list[dict[str, Any]]:
            (stage,) = lists(questions)
            model = f"model: teller, endpoint: {{url: '{server.url}'{retries}}}"
            config = pipeline(tmp_path / "p.yaml", stage.replace("MODEL", model), keep=keep)
            run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
            return Store(output).clips().to_pylist()

        ask([ODD, LARGE])
        server.behaviour.gone_after = server.answered.total()
        failed = ask([ODD, LARGE, SKY], retries=", retries: 0")
        assert {row["status"] for row in failed} == {"failed"}
        assert [row["asked_odd"] for row in failed] == [number_of(row) % 2 for row in failed]
        server.behaviour.gone_after = None
        ask([ODD, LARGE, SKY], keep="{num_frames: {min: 1000}}")
        none = ask([SKY, LARGE, ODD], keep="{num_frames: {min: 1000}}")
        assert {row["status"] for row in none} == {"rejected"}
        assert server.answered.total() == 6 * 2
        then = ask([SKY, LARGE, ODD])
        assert [row["asked_odd"] for row in then] == [number_of(row) % 2 for row in then]
        assert server.answered.total() == 6 * 3


def test_after_a_server_went_away_only_open_questions_are_asked(tmp_path: Path) -> None:
    footage, output = films(tmp_path / "films", num_films=3, num_clips=4), tmp_path / "out"
    with serving(Behaviour(gone_after=17), answer=sharp) as server:
        asked = f"ask: {{model: teller, endpoint: {{url: '{server.url}', concurrency: 2, retries: 0}}, {QUESTIONS}}}"
        config = pipeline(tmp_path / "p.yaml", asked)
        first = run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert first.num_waiting > 0
        server.behaviour.gone_after = None
        then = run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert (then.clips["kept"], then.num_waiting) == (12, 0)
        assert (server.answered.total(), set(server.answered.values())) == (12 * 3, {1}), "it was asked again"


def test_answers_that_a_run_left_behind_count_where_other_questions_are_asked(tmp_path: Path) -> None:
    footage, output = films(tmp_path / "films", num_films=2, num_clips=3), tmp_path / "out"
    with serving(Behaviour(gone_after=7), answer=sharp) as server:
        for asked in ([ODD, LARGE], [LARGE, SKY, ODD]):
            model = f"model: teller, endpoint: {{url: '{server.url}', concurrency: 2, retries: 0}}"
            config = pipeline(tmp_path / "p.yaml", *(stage.replace("MODEL", model) for stage in lists(asked)))
            run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
            server.behaviour.gone_after = None
    assert (server.answered.total(), set(server.answered.values())) == (6 * 3, {1})
    assert not list((output / "pending").glob("*")), "what was kept for a resume is still there"


def test_spending_is_capped(tmp_path: Path) -> None:
    """Each answer costs 10 tokens in, 100 a picture and 5 out: a cap of 4.5 answers ends the asking at the fifth."""
    footage, output = films(tmp_path / "films", num_films=1, num_clips=6), tmp_path / "out"
    usd = 4.5 * (210 + 5) / 1e6
    with serving(answer=sharp) as server:
        spending = f"concurrency: 1, max_usd: {usd}, usd_per_million: [1, 1]"
        asked = f"ask: {{model: teller, endpoint: {{url: '{server.url}', {spending}}}, {QUESTIONS}}}"
        config = pipeline(tmp_path / "p.yaml", asked)
        summary = run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
        assert server.answered.total() == 5
        assert "max_usd is reached" in str(summary.waiting_for)
        assert summary.num_waiting == 5


def test_a_mistake_in_a_question_has_its_place_in_the_file(tmp_path: Path) -> None:
    config = pipeline(tmp_path / "p.yaml", f"ask: {{model: '{SCRIPTED}', questions: [edited, lectures]}}")
    with pytest.raises(ConfigError, match=r"p\.yaml:4:\d+: stage 'ask\(edited,lectures\)': no question 'lectures'"):
        load_plan("asked", config)


@pytest.mark.parametrize(("name", "became"), [("no", "false"), ("Yes", "true")])
def test_a_question_whose_name_yaml_takes_for_true_or_false_is_a_mistake(
    tmp_path: Path, name: str, became: str
) -> None:
    config = pipeline(tmp_path / "p.yaml", f"ask: {{model: '{SCRIPTED}', questions: [{{{name}: 'Is it?'}}]}}")
    with pytest.raises(ConfigError, match=f"a question is called {became}, for which YAML takes a bare yes or no"):
        load_plan("asked", config)


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_real_class_of_model_answers_end_to_end(tmp_path: Path, name: str) -> None:
    """With random weights it says neither yes nor no, and the table says what it said."""
    model = {"llava": tiny.llava, "qwen": tiny.qwen2_5_vl}[name](tmp_path / name)
    see = {"llava": "images", "qwen": "video"}[name]
    footage, output = films(tmp_path / "films", num_films=1, num_clips=2), tmp_path / "out"
    asked = {"model": str(model), "see": see, "max_frames": 2, "max_tokens": 6, "questions": ["lecture", "edited"]}
    config = pipeline(tmp_path / "p.yaml", f"ask: {json.dumps(asked)}", keep="{asked_lecture: {max: 0, unknown: keep}}")
    run("asked", [str(footage)], output, config=str(config), engine="local", shards=False)
    rows = Store(output).clips().to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert (row["status"], row["error"]) == ("kept", None)
        for column in ("asked_lecture", "asked_edited"):
            usage = row[f"{column}_usage"]
            assert usage["model"].startswith(f"{name}#")
            assert 0 < usage["completion_tokens"] <= 6 < usage["prompt_tokens"]
            assert (row[column] is None) == (row[f"{column}_reply"] is not None)
    assert len({row[f"{column}_reply"] for row in rows for column in ("asked_lecture", "asked_edited")}) > 1
