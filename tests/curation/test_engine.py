"""Engines: every part once through every step; errors of ours arrive as they are; nothing is waited for in vain."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from curation.engine import LocalEngine, RayEngine, chunk, make_engine
from curation.errors import CutroomError, UsageError
from curation.stage import Needs
from curation.table import Part


@dataclasses.dataclass
class Note:
    """A step that leaves a note on each part."""

    text: str
    needs: ClassVar[Needs] = Needs(cpus=0.5)

    def setup(self) -> None:
        self.ready = 1

    def __call__(self, part: Part) -> Part:
        part.add(self.text, self.ready)
        return part

    def close(self) -> None:
        self.ready = 0


def test_local_puts_every_part_through_every_step() -> None:
    done = list(LocalEngine()([Part("a"), Part("b")], [Note("x"), Note("y")]))
    assert [(part.id, part.metrics) for part in done] == [("a", {"x": 1, "y": 1}), ("b", {"x": 1, "y": 1})]


def test_steps_are_closed_even_when_the_run_is_given_up() -> None:
    steps = [Note("x"), Note("y")]
    parts = LocalEngine()([Part("a"), Part("b")], steps)
    next(iter(parts))
    assert [step.ready for step in steps] == [1, 1]
    parts.close()  # type: ignore[attr-defined]
    assert [step.ready for step in steps] == [0, 0]


def test_no_parts_no_work() -> None:
    class Unwanted(Note):
        def setup(self) -> None:
            raise AssertionError("nothing to do, nothing to load")

    assert list(LocalEngine()([], [Unwanted("x")])) == []


RAY = """
from curation.engine import RayEngine
from curation.errors import CutroomError, UsageError
from curation.stage import Needs
from curation.table import Part
from tests.curation.test_engine import Note

engine = RayEngine()
parts = [Part(f"{i:02d}") for i in range(20)]
done = sorted((part.id, tuple(part.metrics.items())) for part in engine(parts, [Note("x"), Note("y")]))
assert done == [(f"{i:02d}", (("x", 1), ("y", 1))) for i in range(20)], done

class Fails(Note):
    def __call__(self, part):
        raise CutroomError("said plainly")

try:
    list(engine([Part("a")], [Fails("x"), Note("y")]))
except CutroomError as error:
    assert str(error) == "CutroomError: said plainly", error
else:
    raise AssertionError("no error")

class Greedy(Note):
    needs = Needs(cpus=1e6)

try:
    list(engine([Part("a")], [Greedy("x")]))
except UsageError as error:
    assert "no node of the Ray cluster has as much" in str(error)
else:
    raise AssertionError("no error")
print("ok")
"""


@pytest.mark.slow
def test_ray_does_the_same_and_says_what_is_wrong() -> None:
    done = subprocess.run([sys.executable, "-c", RAY], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "ok", done.stderr[-3000:]


@pytest.mark.slow
def test_a_stage_that_breaks_its_contract_is_said_without_a_traceback(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("p:\n  stages: [decode, 'tests.curation.broken_filters:Liar']\n")
    command = [sys.executable, "-m", "curation.cli", "run", "p", "--config", str(tmp_path / "p.yaml")]
    command += ["--input", str(footage / "pan.mp4"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "stage 'liar' returned ['lie'], declared ['truth']" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own context
@pytest.mark.parametrize("failures", [2, 3])
def test_ray_that_does_not_start_at_once_is_started_again(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    engine = RayEngine()
    if failures == 2:
        engine._connect()
    else:
        with pytest.raises(CutroomError, match=r"Ray cannot be started .*timed out.* --engine local"):
            engine._connect()
    assert len(tries) == 3


def test_an_address_where_nothing_answers_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="needs --engine ray"):
        make_engine("local", address="auto")
    with pytest.raises(UsageError, match="no Ray cluster answers there"):
        make_engine("ray", address="127.0.0.1:1")


def test_chunks_are_nearly_equal_and_in_order() -> None:
    runs = [list(run) for run in chunk(list(range(10)), 4)]
    assert [item for run in runs for item in run] == list(range(10))
    assert {len(run) for run in runs} == {2, 3}
