"""Contract tests that every registered stage gets by itself."""

from __future__ import annotations

import configparser
import importlib
import inspect
import pickle
import re
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.config import STAGES
from curation.errors import StageError
from curation.frames import Frames
from curation.stage import Filter, Stage, TableStage, run_stage
from tests.helpers import EXAMPLES, batch_for

NAMES = sorted(set(STAGES) - {"decode"})


def load(name: str) -> Stage:
    module, _, attribute = STAGES[name].partition(":")
    arguments = EXAMPLES[name]() if name in EXAMPLES else {}
    stage: Stage = getattr(importlib.import_module(module), attribute)(**arguments)
    stage.check()
    return stage


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_writes_exactly_the_columns_it_declares(name: str) -> None:
    stage = load(name)
    stage.setup()
    batch = batch_for(stage, 3)
    done = run_stage(stage, batch, mark=stage.mark({}))
    assert set(done.column_names) - set(batch.column_names) == set(stage.writes.names) - set(batch.column_names)
    for field in stage.writes:
        assert done.schema.field(field.name).type == field.type
    assert done["status"].to_pylist() == ["kept"] * 3
    assert done["measured"].to_pylist() == [[stage.mark({})]] * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_takes_an_empty_batch(name: str) -> None:
    stage = load(name)
    stage.setup()
    done = run_stage(stage, batch_for(stage, 0), mark=stage.mark({}))
    assert done.num_rows == 0
    assert set(stage.writes.names) <= set(done.column_names)


@pytest.mark.parametrize("name", NAMES)
def test_one_broken_clip_among_good_ones_costs_only_itself(name: str) -> None:
    stage = load(name)
    stage.setup()
    batch = batch_for(stage, 5)
    good = run_stage(stage, batch, mark="m@1")
    poisoned = poison(stage, batch, row=2)
    done = run_stage(stage, poisoned, mark="m@1")
    if isinstance(stage, TableStage):  # it cannot leave one clip out; what is missing is unknown
        assert done["status"].to_pylist() == ["kept"] * 5
        assert [done[column][2].as_py() for column in stage.writes.names] == [None] * len(stage.writes)
        return
    if stage.inputs[0] == "caption":  # a clip without a caption is nothing broken
        assert done["status"].to_pylist() == ["kept"] * 5
        for column in stage.writes.names:
            assert done[column].to_pylist()[:2] + done[column].to_pylist()[3:] == (
                good[column].to_pylist()[:2] + good[column].to_pylist()[3:]
            )
        return
    assert done["status"].to_pylist() == ["kept", "kept", "failed", "kept", "kept"]
    assert done["error"][2].as_py().startswith(f"{stage.name}: ")
    for column in stage.writes.names:
        expected = good[column].to_pylist()
        expected[2] = None
        assert done[column].to_pylist() == expected


def poison(stage: Stage, batch: pa.Table, row: int) -> pa.Table:
    """Make one row's input unusable: a torn picture, a short embedding, null where a stage expects something else."""
    column = stage.inputs[0]
    values = batch[column].to_pylist()
    broken = {} if isinstance(stage, TableStage) else {"frames": [{"t_s": 0.0, "jpeg": b"torn"}], "embedding": [0.0]}
    values[row] = broken.get(column)
    field = batch.schema.field(column)
    return batch.set_column(batch.schema.get_field_index(column), field, pa.array(values, field.type))


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_pickles_and_measures_the_same_afterwards(name: str) -> None:
    stage = load(name)
    copy = pickle.loads(pickle.dumps(stage))
    stage.setup()
    copy.setup()
    batch = batch_for(stage, 2)
    assert run_stage(copy, batch, mark="m@1").equals(run_stage(stage, batch, mark="m@1"))
    assert copy.mark({}) == stage.mark({})


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_and_every_column_it_writes_are_documented(name: str) -> None:
    stage = load(name)
    text = inspect.getdoc(type(stage)) or ""
    assert text
    assert stage.name.partition("(")[0] == name  # what can stand in a pipeline twice says which it is
    if isinstance(stage, Filter):
        for column in stage.writes.names:
            assert f"{column}:" in text, f"{column} is not explained in the docstring"


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_is_of_a_column_of_words_that_the_stage_writes(name: str) -> None:
    stage = load(name)
    for column, words in stage.vocabulary.items():
        assert stage.writes.field(column).type in (pa.string(), pa.list_(pa.string()))
        assert words


@pytest.mark.parametrize("name", NAMES)
def test_the_packages_of_a_stage_come_with_its_extra_and_for_tests(name: str) -> None:
    stage = load(name)
    if not stage.packages:
        return
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg")
    extras = setup["options.extras_require"]
    brought = {re.split(r"[^\w-]", line)[0].replace("_", "-") for line in extras[stage.extra].split()}
    known = packages_distributions()  # a package may be imported by another name than it is installed by
    for package in stage.packages:
        assert brought & {name.replace("_", "-") for name in known[package]}, package
    dev = re.search(r"cutroom\[(.*)\]", extras["dev"])
    assert dev
    assert stage.extra in dev[1].split(",")


class Doubler(Stage):
    """Writes twice the duration."""

    name = "doubler"
    reads = ("duration_s",)
    writes = pa.schema([("twice", pa.float32())])

    def process(self, clips: pa.Table) -> pa.Table:
        return pa.table({"twice": pa.array([2 * v for v in clips["duration_s"].to_pylist()], pa.float32())})


def test_rejected_and_failed_clips_are_not_measured() -> None:
    batch = batch_for(Doubler(), 3)
    status = pa.array(["kept", "rejected", "failed"])
    batch = batch.set_column(batch.schema.get_field_index("status"), "status", status)
    assert run_stage(Doubler(), batch, mark="d@1")["twice"].to_pylist() == [4.0, None, None]
    assert run_stage(Doubler(), batch, mark="d@1", score_rejected=True)["twice"].to_pylist() == [4.0, 4.0, None]


def test_a_raised_version_is_measured_anew() -> None:
    class Later(Doubler):
        version = 2

    once = run_stage(Doubler(), batch_for(Doubler(), 2), mark=Doubler().mark({}))
    assert Later().mark({}) not in once["measured"][0].as_py()


def test_pictures_are_not_copied_where_all_clips_are_measured() -> None:
    given: list[int] = []

    class Looker(Filter):
        name = "looker"
        frames = Frames(fps=1, long_side_px=32)
        writes = pa.schema([("looker", pa.float32())])

        def process(self, clips: pa.Table) -> pa.Table:
            given.append(clips[self.frames.column].chunk(0).field("pixels").buffers()[-1].address)
            return pa.table({"looker": pa.array([0.0] * clips.num_rows, pa.float32())}, self.writes)

    clips = batch_for(Looker(), 2)
    run_stage(Looker(), clips, mark="looker@x")
    assert given == [clips[Looker.frames.column].chunk(0).field("pixels").buffers()[-1].address]


def test_a_clip_that_carries_the_mark_keeps_its_value() -> None:
    once = run_stage(Doubler(), batch_for(Doubler(), 2), mark="doubler@1")
    altered = once.set_column(once.schema.get_field_index("twice"), "twice", pa.array([7.0, 7.0], pa.float32()))
    assert run_stage(Doubler(), altered, mark="doubler@1")["twice"].to_pylist() == [7.0, 7.0]
    assert run_stage(Doubler(), altered, mark="doubler@2")["twice"].to_pylist() == [4.0, 4.0]
    assert run_stage(Doubler(), altered, mark="doubler@2")["measured"].to_pylist() == [["doubler@2"]] * 2


@pytest.mark.parametrize(
    "result",
    [
        pa.table({"other": pa.array([1.0, 1.0], pa.float32())}),
        pa.table({"twice": pa.array([1.0, 1.0], pa.float64())}),
        pa.table({"twice": pa.array([1.0], pa.float32())}),
    ],
    ids=["another column", "another type", "a row too few"],
)
def test_a_stage_that_breaks_its_contract_stops_the_run(result: pa.Table) -> None:
    class Broken(Doubler):
        def process(self, clips: pa.Table) -> pa.Table:
            return result

    with pytest.raises(StageError, match="doubler"):
        run_stage(Broken(), batch_for(Doubler(), 2), mark="d@1")


class Widest(TableStage):
    """Writes how many clips there are, once for each of them."""

    name = "widest"
    reads = ("width",)
    writes = pa.schema([("others", pa.int32())])

    def process(self, clips: pa.Table) -> pa.Table:
        widths = clips["width"].to_pylist()
        if None in widths:
            raise ValueError("a width is missing")
        return pa.table({"others": pa.array([len(widths)] * len(widths), pa.int32())})


def test_a_stage_over_the_whole_table_sees_the_kept_clips_at_once_and_its_exception_is_the_runs() -> None:
    batch = batch_for(Widest(), 4)
    status = pa.array(["kept", "rejected", "failed", "kept"])
    batch = batch.set_column(batch.schema.get_field_index("status"), "status", status)
    assert run_stage(Widest(), batch, mark="w@1")["others"].to_pylist() == [2, None, None, 2]
    widths = pa.array([64, 64, 64, None], pa.int32())
    broken = batch.set_column(batch.schema.get_field_index("width"), "width", widths)
    with pytest.raises(StageError, match="'widest' failed on the whole table: ValueError: a width is missing"):
        run_stage(Widest(), broken, mark="w@1")


class Mean(Filter):
    """Writes one score."""

    name = "mean"
    frames = Frames(fps=2, long_side_px=64)
    writes = pa.schema([("mean", pa.float32())])
    result: object = 0.5

    def score(self, frames: np.ndarray, times: np.ndarray) -> object:
        return self.result


@pytest.mark.parametrize(
    ("result", "stored"),
    [(0.5, 0.5), (np.float32(0.5), 0.5), ({"mean": 0.5}, 0.5), (None, None), (float("nan"), None), (np.nan, None)],
)
def test_a_filter_may_return_its_only_score_and_nan_is_unknown(result: object, stored: float | None) -> None:
    stage = Mean()
    stage.result = result
    done = run_stage(stage, batch_for(stage, 1), mark="m@1")
    assert done["mean"].to_pylist() == [stored]
    assert done["status"].to_pylist() == ["kept"]


@pytest.mark.parametrize("result", [{"other": 1.0}, {"mean": 1.0, "other": 1.0}])
def test_a_filter_that_returns_other_scores_stops_the_run(result: object) -> None:
    stage = Mean()
    stage.result = result
    with pytest.raises(StageError, match=r"mean\.score returned"):
        run_stage(stage, batch_for(stage, 1), mark="m@1")


def test_a_score_that_is_no_number_costs_the_clip() -> None:
    stage = Mean()
    stage.result = "high"
    done = run_stage(stage, batch_for(stage, 1), mark="m@1")
    assert done["error"].to_pylist()[0].startswith("mean: ")
