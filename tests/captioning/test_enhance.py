"""Prompts made into descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from captioning import enhance as module
from captioning.enhance import choose, enhance
from captioning.requests import Request, Sampling
from curation.cli import app
from curation.errors import CutroomError, UsageError
from curation.table import CAPTIONS, CLIPS, USAGE, Part, Store, conform, extend
from tests.captioning.server import Behaviour, serving
from tests.helpers import clip_rows

CAPTIONS_SEEN = [
    "A brown dog runs along a beach at dusk, its ears flying, while the camera tracks it from the side.",
    "An old man reads a newspaper on a bench in a park; pigeons walk around his feet.",
    "Waves break on black rocks under a grey sky, and spray hangs in the air.",
    "A woman in a red coat crosses a busy street in the rain, holding a yellow umbrella.",
]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run with four captions; what was rejected, refused or cut off, and a clip without one, have none to offer."""
    store = Store(tmp_path / "out")
    store.create()
    captions = [*CAPTIONS_SEEN, "A rejected clip.", None, "I'm sorry, but I can't see a video.", "A dog runs along"]
    usage = pa.array([None] * 7 + [{"cut_off": True}], USAGE)
    schema = extend(CLIPS, pa.schema([*CAPTIONS, ("caption_usage", USAGE)]))
    clips = conform(clip_rows(8, caption=captions).append_column("caption_usage", usage), schema)
    status = pa.array(["kept"] * 4 + ["rejected"] + ["kept"] * 3)
    clips = clips.set_column(clips.schema.get_field_index("status"), "status", status)
    store.commit(Part("p", clips=clips), sheets=True)
    (tmp_path / "out" / "run.json").write_text(json.dumps({"pipeline": "x", "base": "/", "keep": {}, "shards": {}}))
    return tmp_path / "out"


def echo(request: Request) -> str:
    return f"{request.prompt} That is all."  # so that the prompt is no sentence that breaks off


def refuse(request: Request) -> str:
    return "Sure! I'm sorry, but I can't help with that." if "Prompt: a cat" in request.prompt else "Long."


def chat(request: Request) -> str:
    return "<think>\nA dog.\n</think>\n\nSure! Here is a description:\n\n**A brown dog** runs."


def fail(request: Request) -> str:
    raise RuntimeError("no mood")


def moody(request: Request) -> str:
    return fail(request) if "Prompt: a cat" in request.prompt else "Long."


@pytest.mark.parametrize("json_", [False, True])
def test_a_prompt_that_fails_does_not_cost_the_others(finished: Path, json_: bool) -> None:
    model = ["--run", str(finished), "--model", "tests.captioning.test_enhance:moody"]
    done = CliRunner().invoke(app, ["enhance", "a dog", "a cat", "a bee", *model, *["--json"][: int(json_)]])
    if json_:
        assert [one["prompt"] for one in json.loads(done.stdout)] == ["a dog", "a bee"]
    else:
        assert done.stdout == "Long.\nLong.\n"
    assert done.exit_code == 1
    assert isinstance(done.exception, CutroomError)
    assert str(done.exception).endswith("has not answered 'a cat': no mood")


def test_a_refusal_is_no_answer(finished: Path) -> None:
    model = ["--run", str(finished), "--model", "tests.captioning.test_enhance:refuse"]
    done = CliRunner().invoke(app, ["enhance", "a dog", "a cat", *model])
    assert (done.exit_code, done.stdout) == (1, "Long.\n")
    assert str(done.exception).endswith("has not answered 'a cat': it refuses: I'm sorry, but I can't help with that.")


def test_thoughts_and_chatter_are_not_printed(finished: Path) -> None:
    model = ["--run", str(finished), "--model", "tests.captioning.test_enhance:chat"]
    assert CliRunner().invoke(app, ["enhance", "a dog", *model]).stdout == "A brown dog runs.\n"


@pytest.mark.parametrize(
    ("text", "says"), [("A dog runs. It bar", "A dog runs.\n"), ("A dog ru", ""), ("<think>The user", "")]
)
def test_a_sentence_that_is_cut_off_is_not_printed(finished: Path, text: str, says: str) -> None:
    model = ["--run", str(finished), "--model", "writer"]
    message = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "length"}]}
    page = json.dumps({**message, "data": [{"id": "writer"}]}).encode()
    with serving(Behaviour(page=page, page_type="application/json")) as server:
        done = CliRunner().invoke(app, ["enhance", "a dog", *model, "--endpoint", server.url])
    assert done.stdout == says
    assert done.exit_code == (0 if says else 1)
    assert says or "raise max_tokens" in str(done.exception)


def test_only_whole_captions_of_kept_clips_are_examples(finished: Path) -> None:
    (done,) = enhance(["a dog runs"], finished, "tests.captioning.test_enhance:moody", num_examples=20)
    assert sorted(done.examples) == sorted(CAPTIONS_SEEN)


def test_a_run_whose_captions_are_all_refusals_has_no_style(finished: Path) -> None:
    store = Store(finished)
    for part_id, clips in store.parts("clips"):
        refusals = pa.array(["I cannot view videos."] * len(clips))
        store.write("clips", part_id, clips.set_column(clips.column_names.index("caption"), "caption", refusals))
    with pytest.raises(UsageError, match="break off or are refusals"):
        enhance(["a dog"], finished, "tests.captioning.test_enhance:echo")


def test_captions_are_read_once_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "words", lambda text: (read.append(text), text.split())[1])
    choose(["a dog", "a cat", "a bee"], CAPTIONS_SEEN, 2)
    assert sorted(read) == sorted([*CAPTIONS_SEEN, "a dog", "a cat", "a bee"])


def test_what_is_like_the_prompt_comes_first_and_the_seed_decides_the_rest() -> None:
    beach, street = choose(["a dog on the beach", "rain in the street"], CAPTIONS_SEEN, 2)
    assert (beach[0], street[0]) == (CAPTIONS_SEEN[0], CAPTIONS_SEEN[3])
    drawn = {tuple(choose(["a dog"], CAPTIONS_SEEN, 2, seed=seed)[0]) for seed in range(20)}
    assert len(drawn) == 3, "any of the others may stand beside it"
    assert choose(["a dog"], CAPTIONS_SEEN, 2, seed=4) == choose(["a dog"], CAPTIONS_SEEN, 2, seed=4)
    assert sorted(choose(["a dog"], CAPTIONS_SEEN, 9)[0]) == sorted(CAPTIONS_SEEN)


def test_the_model_is_shown_examples_and_the_prompt(finished: Path) -> None:
    done = enhance(["a dog runs", "$5 {x}"], finished, "tests.captioning.test_enhance:echo", num_examples=2)
    assert [one.prompt for one in done] == ["a dog runs", "$5 {x}"]
    assert CAPTIONS_SEEN[0] in done[0].text
    assert "Prompt: a dog runs" in done[0].text
    assert "Prompt: $5 {x}" in done[1].text
    assert done[0].prompt_file.startswith("enhance-1#")
    assert len(done[0].examples) == 2


def test_a_server_can_answer(finished: Path) -> None:
    asked: list[str] = []

    def answer(prompt: str, images: list[bytes]) -> str:
        asked.append(prompt)
        return " A long description. "

    with serving(Behaviour(models=("writer",)), answer) as server:
        arguments = ["enhance", "a dog", "--run", str(finished), "--model", "writer", "--endpoint", server.url]
        done = CliRunner().invoke(app, arguments)
        assert done.stdout == "A long description.\n"
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert json.loads(done.stdout)[0]["text"] == "A long description."
    assert CAPTIONS_SEEN[0] in asked[0]


def test_a_server_that_refuses_fields_is_not_sent_them(finished: Path) -> None:
    refused = frozenset({"temperature", "seed", "max_tokens"})
    with serving(Behaviour(models=("writer",), unsupported=refused), lambda prompt, images: "Long.") as server:
        arguments = ["enhance", "a dog", "--run", str(finished), "--model", "writer", "--endpoint", server.url]
        said = str(CliRunner().invoke(app, arguments).exception)
        assert "has not answered" in said
        assert "omit: [max_tokens]" in said
        left_out = [word for field in sorted(refused) for word in ("--omit", field)]
        assert "add --body max_completion_tokens" in str(CliRunner().invoke(app, [*arguments, *left_out]).exception)
        done = CliRunner().invoke(app, [*arguments, *left_out, "--body", "max_completion_tokens=2000"])
        assert done.stdout == "Long.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--endpoint", "http://x/v1", "--omit", "seeds"], "--omit seeds: no such field. Did you mean 'seed'?"),
        (["--endpoint", "http://x/v1", "--body", "top_k"], "--body top_k: NAME=VALUE is meant"),
        (["--endpoint", "http://x/v1", "--omit", "max_tokens"], "add --body max_completion_tokens=2000"),
        (["--omit", "seed"], "are about a server: name it with --endpoint"),
    ],
)
def test_mistakes_about_a_server_are_said(finished: Path, words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["enhance", "a dog", "--run", str(finished), "--model", "writer", *words])
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)


def test_mistakes_and_failures_are_said(finished: Path, tmp_path: Path) -> None:
    echo_name = "tests.captioning.test_enhance:echo"
    with pytest.raises(UsageError, match="is empty"):
        enhance([" "], finished, echo_name)
    (tmp_path / "always.txt").write_text("Like these: $examples")
    with pytest.raises(UsageError, match=r"has no \$prompt"):
        enhance(["a dog"], finished, echo_name, template=str(tmp_path / "always.txt"))
    with pytest.raises(UsageError, match="cannot be loaded"):
        enhance(["a dog"], finished, "tests.captioning.test_enhance:nobody")
    empty = Store(tmp_path / "empty")
    empty.create()
    with pytest.raises(UsageError, match="no kept clip with a caption"):
        enhance(["a dog"], empty.root, echo_name)
    with pytest.raises(CutroomError, match="has not answered 'a dog': no mood"):
        enhance(["a dog"], finished, "tests.captioning.test_enhance:fail", sampling=Sampling())
