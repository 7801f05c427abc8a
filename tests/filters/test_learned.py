"""The stage of learned filters, and the file that holds one."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.config import load_plan
from curation.errors import ConfigError, UsageError
from curation.frames import Frames
from curation.run import run
from curation.stage import Filter, run_stage
from curation.table import Store
from filters.learned import Learned, LearnedFilter
from tests.filters.tiny import learned_filter
from tests.helpers import clip_rows

D = 6


@dataclasses.dataclass(kw_only=True)
class Colours(Filter):
    """Stands for the stage that embeds.

    Writes:
        embedding: mean and deviation of each colour.
    """

    name = "colours"
    frames = Frames.sheet(long_side_px=32)
    writes = pa.schema([("embedding", pa.list_(pa.float32()))])

    def score(self, frames: np.ndarray, times: np.ndarray) -> list[float] | None:
        if len(frames) == 0:
            return None
        return [*(frames.mean(axis=(0, 1, 2)) / 255), *(frames.std(axis=(0, 1, 2)) / 255)]


@dataclasses.dataclass(kw_only=True)
class Named(Colours):
    """The same, by a stage that says more of what it writes."""

    writes = pa.schema([pa.field("embedding", pa.list_(pa.float32(), D), metadata={"encoder": "colours"})])


def save(folder: Path, name: str, dimension: int = D, **more: Any) -> Path:
    learned_filter(name, dimension, **more).save(folder / f"{name}.json")
    return folder / f"{name}.json"


def clips_with(vectors: list[list[float] | None]) -> pa.Table:
    return clip_rows(len(vectors), embedding=pa.array(vectors, pa.list_(pa.float32())))


def test_the_score_is_the_logistic_function_of_the_weighted_sum(tmp_path: Path) -> None:
    stage = Learned(model=[str(save(tmp_path, "lecture")), str(save(tmp_path, "noise", seed=1))])
    stage.check()
    vectors = np.random.default_rng(2).normal(size=(5, D)).astype(np.float32)
    done = run_stage(stage, clips_with(vectors.tolist()), mark="m@1")
    assert stage.writes.names == ["learned_lecture", "learned_noise"]
    for seed, column in enumerate(stage.writes.names):
        drawn = np.random.default_rng(seed).normal(size=D + 1)
        expected = 1 / (1 + np.exp(-(vectors @ drawn[:D] + drawn[D])))
        assert done[column].to_pylist() == pytest.approx(expected, abs=1e-6)
    one = run_stage(stage, clips_with(vectors.tolist()[3:4]), mark="m@1")
    assert one["learned_noise"].to_pylist() == done["learned_noise"].to_pylist()[3:4]


def test_without_an_embedding_the_score_is_unknown(tmp_path: Path) -> None:
    stage = Learned(model=str(save(tmp_path, "lecture")))
    vectors = [[1.0] * D, None, [float("nan")] * D, [1e30] * D, [-1e30] * D]
    done = run_stage(stage, clips_with(vectors), mark="m@1")
    assert [value is None for value in done["learned_lecture"].to_pylist()] == [False, True, True, False, False]
    assert sorted(done["learned_lecture"].to_pylist()[3:]) == [0.0, 1.0]
    assert done["status"].to_pylist() == ["kept"] * 5
    assert run_stage(stage, clips_with([None]), mark="m@1")["learned_lecture"].to_pylist() == [None]


def test_an_embedding_of_another_length_costs_its_clip(tmp_path: Path) -> None:
    done = run_stage(Learned(model=str(save(tmp_path, "lecture"))), clips_with([[1.0] * D, [1.0] * 4]), mark="m@1")
    assert done["status"].to_pylist() == ["kept", "failed"]
    assert done["error"][1].as_py() == "learned: ValueError: the embedding has 4 numbers, 'lecture' needs 6"


def test_the_mark_depends_on_the_filter_and_not_on_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = save(tmp_path, "lecture")
    moved = tmp_path / "deep" / "other.json"
    moved.write_bytes(file.read_bytes())
    mark = Learned(model=str(file)).mark({})
    assert Learned(model=str(moved)).mark({}) == mark
    save(tmp_path, "lecture", seed=1)
    assert Learned(model=str(file)).mark({}) != mark
    assert Learned(model=str(moved)).mark({"embedding": "embedding@2"}) != mark


def test_a_worker_needs_no_file(tmp_path: Path) -> None:
    file = save(tmp_path, "lecture")
    stage = Learned(model=str(file))
    stage.check()
    packed = pickle.dumps(stage)
    file.unlink()
    copy = pickle.loads(packed)
    assert run_stage(copy, clips_with([[1.0] * D]), mark="m@1")["status"].to_pylist() == ["kept"]


def harmed(change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(json.dumps(dataclasses.asdict(learned_filter("lecture", D))))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory; train it with `cutroom filter train`"),
        ("", "holds no filter of `cutroom filter train` (the file: invalid JSON"),
        ("\x80\x04N.", "holds no filter"),
        ("[]", "holds no filter"),
        (harmed(lambda c: c.pop("intercept")), "(intercept: field required"),
        (harmed(lambda c: c.update(extra=1)), "(extra: unexpected"),
        (harmed(lambda c: c.update(format="cutroom-learned-filter/2")), "(format: input should be"),
        (harmed(lambda c: c["coefficients"].pop()), "(5 coefficients for 6 dimensions)"),
        (harmed(lambda c: c.update(intercept=float("nan"))), "(intercept: "),
        (harmed(lambda c: c["coefficients"].__setitem__(2, None)), "(coefficients.2: "),
        (harmed(lambda c: c.update(intercept="1")), "(intercept: "),
        (harmed(lambda c: c.update(name="a b")), "the name 'a b' becomes a column"),
    ],
    ids=["missing", "empty", "pickle", "list", "key", "extra", "format", "length", "nan", "null", "text", "name"],
)
def test_a_file_that_holds_no_filter_is_said_with_its_place(text: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "lecture.json"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, f"learned: {{model: {file}}}")
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}:5:7: stage 'learned': ")
    assert says in str(caught.value)


def plan(folder: Path, learned: str, embedding: str = "Colours", keep: str = "") -> list[str]:
    lines = ("decode", f"tests.filters.test_learned:{embedding}", learned)
    (folder / "mine.yaml").write_text("p:\n  stages:\n" + "".join(f"    - {line}\n" for line in lines) + keep)
    return load_plan("p", folder / "mine.yaml").scores


def test_filters_that_do_not_go_together_or_with_the_pipeline_are_refused(tmp_path: Path) -> None:
    one, two = save(tmp_path, "one"), save(tmp_path, "two")
    assert plan(tmp_path, f"learned: {{model: [{one}, {two}]}}") == ["embedding", "learned_one", "learned_two"]
    other = tmp_path / "again.json"
    other.write_bytes(one.read_bytes())
    with pytest.raises(ConfigError, match="two of the filters are called 'one'"):
        plan(tmp_path, f"learned: {{model: [{one}, {other}]}}")
    with pytest.raises(ConfigError, match="name the file of a filter"):
        plan(tmp_path, "learned: {model: []}")
    larger, named = save(tmp_path, "larger", 8), save(tmp_path, "named", encoder={"encoder": "colours"})
    with pytest.raises(ConfigError, match=r"'one' was trained on embeddings of 6 dimensions, 'larger' on .* of 8"):
        plan(tmp_path, f"learned: {{model: [{one}, {larger}]}}")
    assert plan(tmp_path, f"learned: {{model: {named}}}", "Named") == ["embedding", "learned_named"]
    assert plan(tmp_path, f"learned: {{model: {one}}}", "Named") == ["embedding", "learned_one"]
    with pytest.raises(
        ConfigError, match=r"trained on .* of 8 dimensions, and this pipeline has .* of 6 .* by colours"
    ):
        plan(tmp_path, f"learned: {{model: {larger}}}", "Named")
    foreign = save(tmp_path, "foreign", encoder={"encoder": "sounds"})
    with pytest.raises(ConfigError, match=r":5:7: .* by sounds, and this pipeline has .* by colours; train it again"):
        plan(tmp_path, f"learned: {{model: {foreign}}}", "Named")
    (tmp_path / "mine.yaml").write_text(f"p:\n  stages:\n    - decode\n    - learned: {{model: {one}}}\n")
    with pytest.raises(ConfigError, match="reads 'embedding', which no stage writes"):
        load_plan("p", tmp_path / "mine.yaml")


def test_a_file_cannot_be_written_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*lecture\.json: No such file or directory"):
        save(tmp_path / "absent", "lecture")


def test_a_run_scores_clips_and_a_filter_trained_again_is_asked_again(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path, "lecture")
    plan(tmp_path, "learned: {model: lecture.json}", keep="  keep: {learned_lecture: {max: 1}}\n")

    def scores() -> tuple[np.ndarray, np.ndarray, float]:
        arguments: dict[str, Any] = {"config": "mine.yaml", "engine": "local", "shards": False}
        summary = run("p", [str(footage / "hard_cuts.mp4")], "out", **arguments)
        rows = [row for row in Store("out").clips().to_pylist() if row["status"] == "kept"]
        assert len(rows) >= 2
        stored = dict(pair for ids, vectors in Store("out").vectors() for pair in zip(ids, vectors, strict=True))
        vectors, found = np.array([stored[row["clip_id"]] for row in rows]), [row["learned_lecture"] for row in rows]
        return vectors, np.array(found), summary.metrics.get("videos_decoded", 0)

    vectors, first, decoded = scores()
    assert first == pytest.approx(LearnedFilter.load(file).probabilities(vectors), abs=1e-6)
    assert decoded == 1
    save(tmp_path, "lecture", seed=1)
    vectors, second, decoded = scores()
    assert second == pytest.approx(LearnedFilter.load(file).probabilities(vectors), abs=1e-6)
    assert np.abs(second - first).max() > 0.01
    assert decoded == 0
