"""``cutroom caption eval`` with CLIP: the scores are those that the stages measure, and without weights it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from captioning.world import make_world
from curation.caption_match import ClipMatcher, find_matcher
from curation.cli import app
from curation.curate import attach_sheets
from curation.errors import UsageError
from curation.model_files import MissingWeightsError
from curation.output import RUN_FILE
from curation.stage import run_stage
from curation.table import Store
from filters import clip
from filters.embedding import Embedding
from filters.match import Match
from tests.captioning.test_evaluate import ECHO
from tests.filters import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path / "out", 12).root


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def ask(world: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["caption", "eval", str(world), "--model", ECHO, *words])


def measured(world: Path, model: Path, caption: str | None) -> dict[str, float]:
    """match_score of every clip by the stages, of its own caption or of this one."""
    clips = pa.concat_tables([table for _, table in Store(world).parts("clips")])
    frames = pa.concat_tables([table for _, table in Store(world).parts("frames")])
    if caption is not None:
        place = clips.schema.get_field_index("caption")
        clips = clips.set_column(place, "caption", pa.array([caption] * clips.num_rows))
    clips = clips.append_column("frames", attach_sheets(clips["clip_id"], frames))
    for stage in (Embedding(model=str(model)), Match(model=str(model))):
        clips = run_stage(stage, clips, mark=f"{stage.name}@1")
    return dict(zip(clips["clip_id"].to_pylist(), clips["match_score"].to_pylist(), strict=True))


def test_both_captions_are_scored_as_the_stages_score_them(world: Path, model: Path, tmp_path: Path) -> None:
    done = ask(world, "--clip", str(model), "--json", "--table", str(tmp_path / "both.parquet"))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    own, other = measured(world, model, None), measured(world, model, "A red circle moves left across a desert.")
    assert said["matched_by"] == clip.identity(str(model))
    assert said["match_score_unknown"] is None
    assert said["taught"]["match_score"] == pytest.approx(sum(own.values()) / 12, abs=1e-6)
    assert said["model"]["match_score"] == pytest.approx(sum(other.values()) / 12, abs=1e-6)
    assert said["taught"]["match_score"] != pytest.approx(said["model"]["match_score"], abs=1e-4)
    for row in pq.read_table(tmp_path / "both.parquet").to_pylist():
        assert row["taught_match_score"] == pytest.approx(own[row["clip_id"]], abs=1e-6)
        assert row["model_match_score"] == pytest.approx(other[row["clip_id"]], abs=1e-6)


def test_without_weights_it_is_said_and_the_rest_is_done(world: Path) -> None:
    done = ask(world)
    assert done.exit_code == 0, done.output
    assert f"match_score is unknown: the weights of {clip.DEFAULT} are not on this machine" in done.stdout
    assert "token_f1" in done.stdout
    said = json.loads(ask(world, "--json").stdout)
    assert (said["matched_by"], said["model"]["match_score"]) == (None, None)
    assert clip.DEFAULT in said["match_score_unknown"]


def run_file(world: Path, model: str) -> None:
    stages = [{"name": "decode", "settings": {}}, {"name": "embedding", "settings": {"model": model}}]
    content = {"pipeline": "p", "base": "/", "keep": {}, "shards": {}, "stages": stages}
    (world / RUN_FILE).write_text(json.dumps(content))


def test_the_model_of_the_run_is_taken(world: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file(world, "clip#0123")
    found = find_matcher(world, None)
    assert isinstance(found, str)
    assert "name it with --clip" in found
    run_file(world, "some/clip")
    found = find_matcher(world, None)
    assert isinstance(found, str)
    assert "hf download some/clip" in found
    monkeypatch.chdir(model.parent)  # where the name stands for a folder
    (model.parent / "some").mkdir()
    (model.parent / "some" / "clip").symlink_to(model)
    assert isinstance(find_matcher(world, None), ClipMatcher)


def test_a_model_that_was_named_and_is_not_there_is_a_mistake(
    world: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingWeightsError, match="no weights at"):
        find_matcher(world, "./nothing")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"pip install 'cutroom\[models\]'"):
        find_matcher(world, str(model))
    assert "not installed" in str(find_matcher(world, None))
