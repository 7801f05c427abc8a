"""The ceiling on the memory of the process that decodes. Crashes and hangs: test_decode.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from curation.errors import CutroomError, StageError, VideoError
from curation.isolate import Isolated, alive


class Hungry:
    """A worker that takes memory as it is told, and leaves something to be told by."""

    def setup(self) -> None:
        self.num_calls = 0

    def __call__(self, task: str, mb: int) -> int:
        self.num_calls += 1
        if task == "bit by bit":
            held = []
            for _ in range(mb):
                held.append(np.ones(1 << 20, np.uint8))
                time.sleep(0.002)
                alive()
        if task == "at once":
            np.ones(mb << 20, np.uint8)
        if task == "hang":
            tempfile.mkdtemp(prefix="left_behind_")
            time.sleep(60)
        if task == "answer":
            return os.getpid()
        if task == "strange error":
            raise StrangeError(1, 2)
        return self.num_calls


class Lacking(Hungry):
    """A worker that says at its start what it lacks."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def setup(self) -> None:
        raise self.error


class StrangeError(Exception):
    """An exception that pickles and does not come back."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"strange: {a} {b}")


@pytest.fixture
def child() -> Iterator[Isolated]:
    isolated = Isolated(Hungry(), stall_s=20, memory_bytes=200 << 20)
    isolated.start()
    yield isolated
    isolated.close()


def test_memory_beyond_the_ceiling_costs_one_call(child: Isolated) -> None:
    assert child.call("bit by bit", 100) == 1
    with pytest.raises(VideoError, match="the decoder needed more than 200 MB and was stopped"):
        child.call("bit by bit", 2000)
    assert child.call("bit by bit", 100) == 1  # in a new child
    with pytest.raises(VideoError, match="the decoder needed more than 200 MB and was stopped"):
        child.call("at once", 1 << 20)  # a terabyte: refused by the system, before the parent can look
    assert child.call("nothing", 0) == 1
    assert child.call("nothing", 0) == 2


def test_an_error_that_does_not_travel_is_told_in_words(child: Isolated) -> None:
    with pytest.raises(VideoError, match="cannot say how"):
        child.call("strange error", 0)
    assert child.call("nothing", 0) == 2  # the same child


def test_what_a_stage_lacks_is_said_as_it_is() -> None:
    isolated = Isolated(Lacking(StageError("there is no GPU")), stall_s=20)
    with pytest.raises(StageError, match=r"^there is no GPU$"):
        isolated.start()
    assert isolated.pid is None, "the child goes on"
    with pytest.raises(CutroomError, match=r"cannot be started .*RuntimeError: broken"):
        Isolated(Lacking(RuntimeError("broken")), stall_s=20).start()


def test_a_child_that_died_between_calls_is_replaced(child: Isolated) -> None:
    pids = [child.call("answer", 0)]
    for wait_s in (0.0, 0.001, 0.01, 0.1):  # it looks alive until its last thread has gone
        assert pids[-1] == child.pid
        os.kill(pids[-1], signal.SIGKILL)
        time.sleep(wait_s)
        pids.append(child.call("answer", 0))
    assert len(set(pids)) == len(pids)


def test_a_stopped_child_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    isolated = Isolated(Hungry(), stall_s=1)
    isolated.start()
    assert [path.name[:8] for path in tmp_path.iterdir()] == ["cutroom-"]
    with pytest.raises(VideoError, match="no progress for 1 s"):
        isolated.call("hang", 0)
    assert not list(tmp_path.iterdir())


def test_no_child_outlives_its_parent_nor_do_its_files(tmp_path: Path) -> None:
    """Even when the parent is killed and the child hangs."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, threading\n"
        "from curation.isolate import Isolated\n"
        "from tests.curation.test_isolate import Hungry\n"
        "if __name__ == '__main__':\n"
        "    child = Isolated(Hungry(), stall_s=60)\n"
        "    child.start()\n"
        "    print(child.pid, flush=True)\n"
        "    threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "    child.call('hang', 0)\n"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=here)
    pid = int(done.stdout)
    wait_for_end(pid)
    assert not list(scratch.iterdir())


def wait_for_end(pid: int) -> None:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} lives on")
