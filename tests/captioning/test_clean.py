"""Cleaning takes away what does not belong to a caption, says what it did, and leaves good captions alone."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from captioning.checks import CaptionChecks, boilerplate
from captioning.clean import NOTHING_LEFT, RULES, CleanCaptions, clean
from captioning.similarity import CaptionSimilarity
from captioning.words import is_cut_off
from curation.config import load_plan
from curation.errors import ConfigError
from curation.run import run
from curation.stage import Stage, run_stage
from curation.summary import Summary
from curation.table import CLEANED, Store, caption_of
from shards.verify import verify
from tests.captioning.test_checks import FOREIGN, GOOD
from tests.helpers import clip_rows


@pytest.mark.parametrize("text", [*GOOD, *FOREIGN.values()])
def test_a_good_caption_stays_as_it_is(text: str) -> None:
    assert clean(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "cleaned", "changes"),
    [
        ("The video shows a dog running.", "A dog running.", ["opening"]),
        ("In this video, a dog runs. The image depicts a tree.", "A dog runs. A tree.", ["opening"]),
        ("the video shows a dog", "a dog", ["opening"]),
        ("The video begins with a dog. These frames depict a tree.", "A dog. A tree.", ["opening"]),
        ("Based on the notes, the video shows a dog.", "A dog.", ["opening"]),
        ("Caption: a dog runs", "A dog runs", ["label"]),
        ("Sure! Here is a description of the video: The clip features a dog.", "A dog.", ["label", "opening"]),
        ("**Caption:** A *brown* dog.", "A brown dog.", ["markdown", "label"]),
        ("## The park\n\nA dog runs.", "A dog runs.", ["markdown", "whitespace"]),
        ("**The park**\nA dog runs.", "A dog runs.", ["markdown"]),
        ("# A dog runs", "A dog runs", ["markdown"]),
        ("- A dog runs\n- A cat sits", "A dog runs. A cat sits.", ["markdown", "whitespace"]),
        ("1. A dog runs.\n2. A cat sits.", "A dog runs. A cat sits.", ["markdown", "whitespace"]),
        ("- A dog runs\n- A cat and the", "A dog runs.", ["markdown", "whitespace", "cut_off"]),
        ("```\nA [dog](http://a.b/c) runs.\n```", "A dog runs.", ["markdown", "whitespace"]),
        ("A sign says `OPEN`.", "A sign says OPEN.", ["markdown"]),
        ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name", []),
        ('"A dog runs."', "A dog runs.", ["quotes"]),
        ("“The dog's ball rolls.”", "The dog's ball rolls.", ["quotes"]),
        ("'The dog's ball rolls.'", "The dog's ball rolls.", ["quotes"]),
        ('"Stop" is on the sign, "Go" below it. "Now"', '"Stop" is on the sign, "Go" below it.', ["cut_off"]),
        ('"A dog runs. It barks and', "A dog runs.", ["quotes", "cut_off"]),
        ('"OPEN" stands above "CLOSED"', '"OPEN" stands above "CLOSED"', []),
        ("A dog runs in snow. A cat sits. A dog runs in snow.", "A dog runs in snow. A cat sits.", ["repetition"]),
        ("A dog runs in snow. A dog runs in snow. A cat.", "A dog runs in snow. A cat.", ["repetition"]),
        ("他在跑步。他在跑步。", "他在跑步。", ["repetition"]),
        ("Everyone claps. Everyone claps.", "Everyone claps. Everyone claps.", []),
        ("A dog runs. The cat", "A dog runs.", ["cut_off"]),
        ("A dog  runs.\n\nA cat sits. ", "A dog runs. A cat sits.", ["whitespace"]),
        ("\ufeffA dog\u200b runs.", "A dog runs.", ["whitespace"]),
        ("A man walks along the", None, ["cut_off", NOTHING_LEFT]),
        ("Caption:", None, ["label", NOTHING_LEFT]),
        (" \n", None, ["whitespace", NOTHING_LEFT]),
        ("...", None, [NOTHING_LEFT]),
        (None, None, []),
    ],
)
def test_a_caption_becomes_clean(text: str | None, cleaned: str | None, changes: list[str]) -> None:
    assert clean(text) == (cleaned, changes)


def test_a_caption_whose_model_was_stopped_loses_its_last_sentence_if_that_has_no_end() -> None:
    assert clean("A dog runs. A cat sits", stopped=True) == ("A dog runs.", ["cut_off"])
    assert clean("A dog runs.", stopped=True) == ("A dog runs.", [])
    assert clean("a red ball on a table", stopped=True) == (None, ["cut_off", NOTHING_LEFT])
    assert clean("- A dog runs\n- A cat si", stopped=True)[0] == "A dog runs."


def test_only_the_rules_that_are_named_are_followed() -> None:
    assert clean('"The video shows a dog."', rules=["quotes"]) == ("The video shows a dog.", ["quotes"])


# Pieces that rules look for, in any order and broken anywhere, besides any text at all.
_PIECES = st.lists(
    st.sampled_from(
        [
            *("The video shows ", "In this image, ", "we see ", "Caption: ", "Sure! ", "A dog runs in snow. ", "the "),
            *("a dog", "Dr. Lee", ".", "!", "。", "…", '"', "'", "“", "”", "「", "」"),
            *("**", "*", "_", "__", "`", "```", "\x1c", "- - "),
            *("\n", "\n\n", " ", "- ", "1. ", "2) ", "# ", "> ", "[a](b)", "---", "<br>", "ß", "ŉ", "\u200b"),
        ]
    ),
    max_size=14,
).map("".join)


@settings(deadline=None)
@given(text=st.text() | _PIECES, stopped=st.booleans())
@example(text="Caption: ßa.", stopped=False)
def test_cleaning_twice_is_cleaning_once(text: str, stopped: bool) -> None:
    once, _ = clean(text, stopped=stopped)
    assert clean(once, stopped=stopped) == (once, [])


@settings(deadline=None)
@given(text=_PIECES)
def test_what_is_clean_has_nothing_wrong(text: str) -> None:
    cleaned, changes = clean(text)
    assert set(changes) <= {*RULES, NOTHING_LEFT}
    assert (cleaned is None) == (changes[-1:] == [NOTHING_LEFT])
    if cleaned is not None:
        assert not is_cut_off(cleaned)
        assert boilerplate(cleaned) == 0
        assert cleaned == " ".join(cleaned.split())


def test_the_stage_writes_beside_the_caption_and_hears_that_a_model_was_stopped() -> None:
    stage = CleanCaptions()
    clips = pa.table({"caption": pa.array(["A dog runs. A cat", None, "Caption: a dog"])})
    expected = [
        {"clean_caption": "A dog runs.", "caption_changes": ["cut_off"]},
        {"clean_caption": None, "caption_changes": []},
        {"clean_caption": "A dog", "caption_changes": ["label"]},
    ]
    assert stage.process(clips).to_pylist() == expected
    usage = pa.array([{"cut_off": False}, None, {"cut_off": True}])
    stage.check_inputs(pa.schema([("caption_usage", usage.type)]))
    expected[2] = {"clean_caption": None, "caption_changes": ["label", "cut_off", NOTHING_LEFT]}
    assert stage.process(clips.append_column("caption_usage", usage)).to_pylist() == expected


def test_the_order_of_rules_decides_nothing() -> None:
    assert CleanCaptions(rules=["quotes", "label"]).mark({}) == CleanCaptions(rules=["label", "quotes"]).mark({})
    assert CleanCaptions(rules=["quotes"]).mark({}) != CleanCaptions().mark({})


def test_the_caption_of_a_clip_is_the_clean_one_where_it_was_cleaned() -> None:
    assert caption_of({"caption": "Caption: a"}) == "Caption: a"
    assert caption_of({"caption": "Caption: a", "clean_caption": "A", "caption_changes": ["label"]}) == "A"
    assert caption_of({"caption": "...", "clean_caption": None, "caption_changes": [NOTHING_LEFT]}) is None
    # Of a run that was killed: other parts of the table have the column already.
    assert caption_of({"caption": "a", "clean_caption": None, "caption_changes": None}) == "a"


STAGES = [{"decode": {"isolate": False}}, "sidecar_captions"]
CAPTIONS = {"pan": "The video shows a pan.", "zoom": "A zoom."}


@pytest.fixture
def folder(footage: Path, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, caption in CAPTIONS.items():
        (tmp_path / "in" / f"{name}.mp4").write_bytes((footage / f"{name}.mp4").read_bytes())
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps({"caption": caption}))
    return tmp_path / "in"


def go(folder: Path, *more: Any) -> Summary:
    file = folder.parent / "mine.yaml"
    file.write_text(json.dumps({"mine": {"stages": [*STAGES, *more], "shards": {"max_samples": 1}}}))
    return run("mine", [str(folder)], folder.parent / "out", config=str(file), engine="local")


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Video -> the text and json of its only sample, and the bytes of the shard it lies in."""
    found = {}
    for path in (folder.parent / "out" / "shards").glob("*.tar"):
        data = path.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            content = {name.rpartition(".")[2]: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        about = json.loads(content["json"])
        found[Path(about["video"]).stem] = {"txt": content["txt"].decode(), "json": about, "shard": data}
    return found


def test_shards_hold_the_clean_caption_and_cleaning_anew_encodes_nothing(folder: Path) -> None:
    assert go(folder).metrics["clips_encoded"] == 2
    assert {name: sample["txt"] for name, sample in samples(folder).items()} == CAPTIONS
    cleaned = go(folder, "clean_captions")
    assert cleaned.num_captioned == 2
    assert "clips_encoded" not in cleaned.metrics
    assert "videos_decoded" not in cleaned.metrics
    before = samples(folder)
    assert {name: sample["txt"] for name, sample in before.items()} == {"pan": "A pan.", "zoom": "A zoom."}
    assert before["pan"]["json"]["caption"] == CAPTIONS["pan"]
    assert before["pan"]["json"]["caption_changes"] == ["opening"]
    assert verify(Store(folder.parent / "out")) == []
    assert "clips_encoded" not in go(folder, {"clean_captions": {"rules": ["quotes"]}}).metrics
    after = samples(folder)
    assert after["pan"]["txt"] == CAPTIONS["pan"]
    assert after["zoom"]["shard"] == before["zoom"]["shard"]
    assert verify(Store(folder.parent / "out")) == []


def test_a_caption_of_which_nothing_is_left_is_none(folder: Path) -> None:
    (folder / "pan.json").write_text(json.dumps({"caption": "Caption:"}))
    assert go(folder, "clean_captions").num_captioned == 1
    assert samples(folder)["pan"]["txt"] == ""
    assert verify(Store(folder.parent / "out")) == []


def test_clean_captions_are_no_scores(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"mine": {"stages": [*STAGES, "clean_captions"]}}))
    plan = load_plan("mine", tmp_path / "mine.yaml")
    assert plan.scores == []
    assert set(CLEANED.names) <= set(plan.clip_schema.names)


@pytest.mark.timeout(5)  # one dash at a time it took 10 s
def test_a_long_row_of_dashes_is_cleaned_in_no_time() -> None:
    assert clean("- " * 5000 + "A dog runs.") == ("A dog runs.", ["markdown"])


def cleaned(*captions: str | None) -> pa.Table:
    """A table of captions as written and cleaned."""
    rows = [clean(caption) if caption else (None, []) for caption in captions]
    columns = {"caption": pa.array(captions, pa.string()), "start_s": [float(i) for i in range(len(captions))]}
    table = clip_rows(len(captions)).drop_columns(["start_s", "video_id"])
    for name, values in {**columns, "video_id": ["film"] * len(captions)}.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    for i, field in enumerate(CLEANED):
        table = table.append_column(field, pa.array([row[i] for row in rows], field.type))
    return table


def judged(stage: Stage, clips: pa.Table, *, behind: bool = True) -> pa.Table:
    """What a stage says of clips, behind the stage that cleans them or without it."""
    known = [name for name in clips.column_names if behind or name not in CLEANED.names]
    stage.check_inputs(clips.select(known).schema)
    return run_stage(stage, clips, mark="m@1")


def test_captions_are_checked_as_they_are_shipped() -> None:
    clips = cleaned("The video shows a dog running.", "A dog runs. A cat", "Caption:", None)
    usage = pa.array([{"cut_off": True}, {"cut_off": True}, None, None])
    clips = clips.append_column("caption_usage", usage)
    shipped = judged(CaptionChecks(), clips)
    assert shipped["caption_words"].to_pylist() == [3, 3, 0, 0]
    assert shipped["caption_boilerplate"].to_pylist() == [0, 0, None, None]
    assert shipped["caption_cut_off"].to_pylist() == [0, 0, None, None], "what broke off has gone"
    for stage, behind in ((CaptionChecks(column="caption"), True), (CaptionChecks(), False)):
        written = judged(stage, clips, behind=behind)
        assert written["caption_boilerplate"].to_pylist()[0] == 0.5
        assert written["caption_cut_off"].to_pylist()[:2] == [1, 1]


def test_neighbours_are_compared_as_they_are_shipped() -> None:
    clips = cleaned("The video shows a dog.", "Caption: a dog.", "Caption:", "A dog.")
    assert judged(CaptionSimilarity(), clips)["caption_similarity"].to_pylist() == [0, 1, None, 1]
    written = judged(CaptionSimilarity(), clips, behind=False)["caption_similarity"].to_pylist()
    assert written[1] < 1


def test_cleaning_anew_judges_anew(folder: Path) -> None:
    def scores() -> list[float]:
        found: list[float] = Store(folder.parent / "out").clips()["caption_boilerplate"].to_pylist()
        return found

    go(folder, "caption_checks", "caption_similarity")
    assert max(scores()) == pytest.approx(3 / 5)
    go(folder, "clean_captions", "caption_checks", "caption_similarity")
    assert scores() == [0, 0]
    go(folder, {"clean_captions": {"rules": ["quotes"]}}, "caption_checks", "caption_similarity")
    assert max(scores()) == pytest.approx(3 / 5)


def test_what_judges_captions_stands_behind_what_cleans_them(tmp_path: Path) -> None:
    stages = [*STAGES, "caption_similarity", "clean_captions"]
    (tmp_path / "mine.yaml").write_text(json.dumps({"mine": {"stages": stages}}))
    with pytest.raises(ConfigError, match="caption_similarity of captions as they were written"):
        load_plan("mine", tmp_path / "mine.yaml")
