"""pipelines.yaml: every mistake is found before work starts, with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from captioning import captioner
from curation.config import default_file, load_plan, pipeline_names
from curation.errors import ConfigError, UsageError
from curation.frames import Frames
from curation.stage import Filter, Stage, TableStage
from filters import clip
from filters.aesthetic import Aesthetic

HEAD = "p:\n  stages:\n    - decode\n"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (HEAD + "    - moton\n", "4:7", "unknown stage 'moton'. Did you mean 'motion'?"),
        (
            "p:\n  stages:\n    - decode: {detektor: adaptive}\n",
            "3:16",
            "unknown key 'detektor'. Did you mean 'detector'?",
        ),
        ("p:\n  stages:\n    - decode: {detector: magic}\n", "3:16", "'adaptive', 'content', 'threshold' or 'none'"),
        ("p:\n  stages:\n    - decode: {max_clip_s: ten}\n", "3:16", "a valid number, got 'ten'"),
        ("p:\n  stages:\n    - decode: {max_clip_s: '10'}\n", "3:16", "a valid number, got '10'"),
        ("p:\n  stages:\n    - decode: {max_clip_s: -1}\n", "3:16", "greater than 0, got -1"),
        ("p:\n  stages:\n    - decode: {threads: true}\n", "3:16", "a valid integer, got True"),
        (HEAD + "  keep:\n    motion_score: {min: 1}\n", "5:5", "no stage writes 'motion_score'"),
        (HEAD + "    - motion\n  keep:\n    motion_scor: {min: 1}\n", "6:5", "Did you mean 'motion_score'?"),
        (HEAD + "    - motion\n  keep:\n    motion_score: {minn: 1}\n", "6:20", "Did you mean 'min'?"),
        (HEAD + "    - motion\n  keep:\n    motion_score: {min: low}\n", "6:20", "a valid number, got 'low'"),
        (HEAD + "  shards: {crff: 1}\n", "4:12", "Did you mean 'crf'?"),
        (HEAD + "  shards: {crop_bars: true}\n", "4:12", "needs the stage `quality`"),
        (HEAD + "  shards: {crf: 99}\n", "4:12", "less than or equal to 51"),
        (HEAD + "    - motion\n    - motion\n", "5:7", "stands here twice"),
        ("p:\n  stages:\n    - motion\n", "3:7", "the first stage must be 'decode'"),
        ("p:\n  stages: []\n", "2:3", "at least 1 item"),
        ("p:\n  stage:\n    - decode\n", "2:3", "unknown key 'stage'. Did you mean 'stages'?"),
        ("p:\n  about: x\n", "1:1", "'stages' is missing"),
        ("p: [1,\n", "2:1", "not valid YAML"),
        ("p: &a [*b]\n", "1:8", "not valid YAML"),
        ("p: !!python/object/apply:os.system [ls]\n", "1:4", "not valid YAML"),
        ("p:\n  stages: [decode]\n  stages: [decode]\n", "3:3", "'stages' stands here twice"),
        ("- 1\n", "1:1", "a mapping from pipeline names"),
        ("", "1:1", "a mapping from pipeline names"),
        (HEAD + "    - 3\n", "4:7", "a stage is a name, or a name and its arguments"),
        (HEAD + "    - :Filter\n", "4:7", "cannot be loaded: ValueError"),
        (HEAD + "    - curation.stage:Filter\n", "4:7", "does not declare name and frames"),
        (HEAD + "    - decode: 3\n", "4:7", "a stage is a name"),
        (HEAD + "  keep:\n    codec: {min: 3}\n", "5:5", "min and max need numbers, and the column holds string"),
        (HEAD + "  keep:\n    fps: {any_of: [a]}\n", "5:5", "need words, and the column holds double"),
        (HEAD + "  keep:\n    fps: {min: 5, max: 1}\n", "5:5", "min 5 is above max 1"),
        (
            HEAD + "    - motion\n  keep:\n    camera_motion: {none_of: [shakes]}\n",
            "6:5",
            "camera_motion: 'shakes' is none of its words. Did you mean 'shake'?",
        ),
        (HEAD + "    - motion\n  keep:\n    camera_motion: {any_of: [static, pan]}\n", "6:5", "'pan' is none of its"),
        (
            HEAD + "    - sidecar_captions\n    - clean_captions\n"
            "  keep:\n    caption_changes: {none_of: [nothing_lef]}\n",
            "7:5",
            "Did you mean 'nothing_left'?",
        ),
        (
            HEAD + "    - sidecar_captions\n    - caption_checks: {languages: [de, fr]}\n"
            "  keep:\n    caption_language: {any_of: [en]}\n",
            "7:5",
            "'en' is none of its words.",
        ),
        (HEAD + "  keep:\n    fps: {min: .nan}\n", "1:1", "infinite or not a number"),
        (HEAD + "  shards: {gop_s: .inf}\n", "1:1", "infinite or not a number"),
        (HEAD + "  shards: {preset: bogus}\n", "4:12", "'ultrafast'"),
        ("? [a]\n: 1\n", "1:3", "is no name"),
        (
            HEAD + "    - nowhere.module:Filter\n",
            "4:7",
            "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (HEAD + "    - json:dumps\n", "4:7", "'json:dumps' is not a Stage"),
        (HEAD + "    - {motion: {}, quality: {}}\n", "4:7", "one stage per list entry"),
        (HEAD + "    - tests.curation.test_config:ReadsText\n", "4:7", "reads 'text', which no stage writes"),
        (
            HEAD + "    - tests.curation.test_config:ReadsCaption\n    - sidecar_captions\n",
            "4:7",
            "writes later; move it up",
        ),
        (HEAD + "    - motion\n    - tests.curation.test_config:WritesMotion\n", "5:7", "which 'motion' writes too"),
        (
            HEAD + "    - tests.curation.test_config:NeedsMore\n",
            "4:7",
            "needs no_such_package, not installed here: pip install 'cutroom[text]'",
        ),
        (
            HEAD + "    - sidecar_captions\n    - tests.curation.test_config:DenseReadsCaption\n",
            "5:7",
            "while decoding",
        ),
        (HEAD + "    - tests.curation.test_config:WholeReadsFrames\n", "4:7", "on all clips at once and cannot read"),
    ],
)
def test_a_mistake_is_said_with_file_line_and_column(tmp_path: Path, text: str, place: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plan("p", file)
    assert str(caught.value).startswith(f"{file}:{place}: ")
    assert message in str(caught.value)


def test_the_words_of_a_column_are_accepted_and_any_where_they_are_open(tmp_path: Path) -> None:
    stages = HEAD + "    - motion\n    - sidecar_captions\n    - clean_captions\n  keep:\n"
    rules = "    camera_motion: {any_of: [static, pan_left], none_of: [shake]}\n    codec: {any_of: [of_tomorrow]}\n"
    (tmp_path / "p.yaml").write_text(stages + rules + "    caption_changes: {none_of: [cut_off, nothing_left]}\n")
    assert list(load_plan("p", tmp_path / "p.yaml").rules) == ["codec", "camera_motion", "caption_changes"]


def test_aliases_do_not_make_checking_slow(tmp_path: Path) -> None:
    layers = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)]
    file = tmp_path / "laughs.yaml"
    file.write_text("l0: &l0 [x]\n" + "\n".join(layers) + "\n" + HEAD)
    assert load_plan("p", file).pipeline == "p"


def test_listing_pipelines_survives_one_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: 3\nb:\n  about: fine\n  stages: [decode]\n")
    assert pipeline_names(tmp_path / "p.yaml") == {"a": "", "b": "fine"}


def test_an_unknown_pipeline_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'weight_free'"):
        load_plan("wieght_free")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.yaml"):
        load_plan("p", tmp_path / "absent.yaml")


def test_every_shipped_pipeline_is_valid_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "check", lambda model: None)  # tests/filters/test_embedding.py is about missing weights
    monkeypatch.setattr(clip, "width", lambda model: 768)
    monkeypatch.setattr(Aesthetic, "check", lambda self: None)
    monkeypatch.setattr(Aesthetic, "_load", lambda self: (np.zeros(768), 0.0))
    monkeypatch.setattr(captioner, "check_backend", lambda model, **_: None)
    monkeypatch.setattr(captioner, "identity", lambda model, *_: model)
    for name, about in pipeline_names(default_file()).items():
        assert about
        assert load_plan(name).decode.stage.name == "decode"


def plan_of(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    return [step.mark for step in load_plan("p", file).steps]


def test_a_mark_changes_with_settings_that_decide_the_result_and_no_others(tmp_path: Path) -> None:
    base = plan_of(tmp_path, HEAD + "    - motion\n")
    threads = plan_of(tmp_path, "p:\n  stages:\n    - decode: {threads: 7, stall_s: 3}\n    - motion\n")
    pieces = plan_of(tmp_path, "p:\n  stages:\n    - decode: {max_clip_s: 5}\n    - motion\n")
    rules = plan_of(tmp_path, HEAD + "    - motion\n  keep: {motion_score: {min: 1}}\n")
    assert threads == base
    assert rules == base
    assert pieces[0] != base[0]  # other clips,
    assert pieces[1] == base[1]  # but a clip that stays the same keeps its motion


def test_rules_are_judged_in_the_order_of_the_stages(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(HEAD + "    - motion\n  keep: {motion_score: {min: 1}, duration_s: {min: 1}}\n")
    assert list(load_plan("p", file).rules) == ["duration_s", "motion_score"]


class ReadsText(Stage):
    """Reads a column that nobody writes."""

    name = "reads_text"
    reads = ("text",)


class ReadsCaption(Stage):
    """Reads what captioners write."""

    name = "reads_caption"
    reads = ("caption",)


class WritesMotion(Stage):
    """Writes a column of another stage."""

    name = "writes_motion"
    writes = pa.schema([("motion_score", pa.float32())])


class NeedsMore(Stage):
    """Asks for a package that nobody has."""

    name = "needs_more"
    extra = "text"
    packages = ("no_such_package",)


class DenseReadsCaption(Filter):
    """Asks for decoded frames and for something that comes later."""

    name = "dense_reads_caption"
    reads = ("caption",)
    frames = Frames(fps=1, long_side_px=64)


class WholeReadsFrames(TableStage):
    """Asks for the contact sheets of all clips at once."""

    name = "whole_reads_frames"
    reads = ("frames",)
