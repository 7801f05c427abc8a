"""Working on hostile data in a child process: a crash, a hang or a flood of memory costs one call, not the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import psutil

from curation.errors import CutroomError, VideoError, one_line

_CALLS_PER_CHILD = 500  # a fresh child now and then bounds what leaking decoders can hold
_POLL_S = 0.1  # memory is looked at so often
_START_S = 120.0  # a child has at least so long to import, load its models and report: no file is to blame for that
# Threads and allocators reserve address space that they never use (1.2 to 1.7 GB of it, measured with two and with
# eight decoder threads). So the hard limit stands far above the ceiling: it is there for one giant allocation, which
# would be filled before the parent looks. The ceiling is the parent's, on resident memory.
_SPACE_PER_BYTE, _RESERVED_BYTES = 2, 2 << 30

_beat: Any = None  # in the child: shared time of the last sign of progress


def alive() -> None:
    """Tell the parent that work goes on. Call it at least once per frame; does nothing outside a child."""
    if _beat is not None:
        _beat.value = time.monotonic()


class TooLargeError(VideoError):
    """The work needed more memory than it may."""


class Worker(Protocol):
    """What runs in the child: sent there once, set up there once."""

    def setup(self) -> None: ...
    def __call__(self, *args: Any) -> Any: ...


class Isolated:
    """A child process that does one piece of work at a time and is replaced when it crashes, hangs or grows.

    Every child has a pipe of its own, so that one which dies while it answers leaves nothing behind that the next could
    stumble over, and a folder of its own for temporary files, which goes when it goes.

    Args:
        worker: what does the work; it must pickle.
        stall_s: a child that shows no sign of progress for so long is stopped.
        memory_bytes: a child that holds more resident memory than this, on top of what it held once set up, is stopped.
    """

    def __init__(self, worker: Worker, *, stall_s: float, memory_bytes: int | None = None) -> None:
        self._context = multiprocessing.get_context("spawn")  # decoders do not survive a fork
        self._worker, self._stall_s, self._memory_bytes = worker, stall_s, memory_bytes
        self._beat = self._context.Value("d", time.monotonic(), lock=False)
        self._child: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._clean: weakref.finalize[Any, Any] | None = None
        self._base_bytes = self._num_calls = 0

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child and set its worker up, so that what is wrong here is not taken for a fault of a video.

        Raises:
            CutroomError: no child can be started.
            Exception: whatever the worker's ``setup`` raised.
        """
        self._pipe, theirs = self._context.Pipe()
        scratch = tempfile.mkdtemp(prefix="cutroom-")
        self._clean = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        self._child = self._context.Process(
            target=_serve, args=(theirs, self._beat, self._worker, self._memory_bytes, scratch), daemon=True
        )
        self._num_calls = 0
        try:
            self._child.start()
            theirs.close()
            self._base_bytes = self._answer(max(self._stall_s, _START_S), limited=False)
        except (VideoError, OSError, RuntimeError) as error:
            self._stop()
            if isinstance(error, CutroomError) and not isinstance(error, VideoError):
                raise  # a stage says itself what it lacks
            raise CutroomError(
                f"the decoder's process cannot be started ({one_line(error)}). In a script of your own, "
                "call run() below `if __name__ == '__main__':`"
            ) from error

    def call(self, *args: Any) -> Any:
        """Let the worker do one piece of work, in a fresh child if there is none.

        Raises:
            VideoError: the child died, made no progress for ``stall_s`` seconds or needed more memory than it may.
            Exception: whatever the worker raised.
        """
        if self._num_calls >= _CALLS_PER_CHILD:
            self.close()
        if not self._asked(args):  # it has died meanwhile, of nothing that these arguments can be blamed for
            self.start()
            if not self._asked(args):
                raise VideoError("the decoder's process takes no work")
        self._num_calls += 1
        return self._answer(self._stall_s)

    def _asked(self, args: tuple[Any, ...]) -> bool:
        """Whether a child has taken the work, and says so: one that is dying looks alive, and its pipe is open."""
        if self._pipe is None:
            return False
        try:
            self._pipe.send(args)
            self._answer(self._stall_s)
        except (VideoError, OSError):
            self._stop()
            return False
        return True

    def _answer(self, stall_s: float, *, limited: bool = True) -> Any:
        """Wait for what the child has to say, and watch it meanwhile."""
        assert self._pipe is not None
        assert self._child is not None
        self._beat.value = time.monotonic()
        while not wait([self._pipe, self._child.sentinel], timeout=_POLL_S):
            if time.monotonic() - self._beat.value > stall_s:
                self._stop()
                raise VideoError(f"the decoder made no progress for {stall_s:g} s and was stopped")
            if limited and self._is_too_large():
                self._stop()
                raise self._too_large()
        try:
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise VideoError(f"the decoder crashed ({self._last_words()})") from None
        except Exception as error:  # an exception of a library that does not unpickle
            raise VideoError(f"the decoder failed, and cannot say how ({one_line(error)})") from None
        if good:
            return value
        if isinstance(value, MemoryError) and limited:
            self._stop()  # nobody knows what state the libraries are in that it failed in
            raise self._too_large()
        raise value

    def _is_too_large(self) -> bool:
        if self._memory_bytes is None:
            return False
        with contextlib.suppress(psutil.Error):  # it has just ended: the pipe tells
            return bool(psutil.Process(self.pid).memory_info().rss > self._base_bytes + self._memory_bytes)
        return False

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the decoder needed more than {(self._memory_bytes or 0) >> 20} MB and was stopped")

    def _last_words(self) -> str:
        """How the child ended, after it has."""
        assert self._child is not None
        self._child.join(timeout=5)
        code = self._child.exitcode
        self._stop()
        names = {-number: number.name for number in signal.Signals}
        return names.get(code or 0, f"exit code {code}")

    def _stop(self) -> None:
        """Be rid of the child, whatever it does."""
        if self._child is not None and self._child.pid is not None:
            self._child.kill()
            self._child.join(timeout=5)  # one that waits for a dead disk ends when it can
            with contextlib.suppress(ValueError):
                self._child.close()
        self._child = None
        if self._pipe is not None:
            self._pipe.close()
        self._pipe = None
        if self._clean is not None:
            self._clean()

    def close(self) -> None:
        """Let the child end by itself, so that it can clean up; then make sure of it."""
        if self._pipe is not None:
            self._pipe.close()
        if self._child is not None:
            self._child.join(timeout=5)
        self._stop()


def _serve(pipe: Connection, beat: Any, worker: Worker, memory_bytes: int | None, scratch: str) -> None:
    """The life of a child: set up, say so, then work until the parent closes the pipe."""
    global _beat
    _beat = beat
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    tempfile.tempdir = scratch
    threading.Thread(target=_end_with_parent, args=(scratch,), daemon=True).start()
    try:
        import cv2

        cv2.setNumThreads(1)  # the engine runs one worker per CPU
        worker.setup()
    except Exception as error:
        _send(pipe, False, error)
        return
    _limit_memory(memory_bytes)
    _send(pipe, True, psutil.Process().memory_info().rss)
    while True:
        try:
            args = pipe.recv()
        except EOFError:
            return
        _send(pipe, True, None)  # it has taken the work: what happens from here on may be the work's fault
        try:
            result = worker(*args)
        except Exception as error:
            _send(pipe, False, error)
        else:
            _send(pipe, True, result)
            del result  # it may be large, and the next call may be long in coming


def _send(pipe: Connection, good: bool, value: Any) -> None:
    """Answer the parent. What cannot be pickled (some exceptions) is told in words."""
    try:
        pipe.send((good, value))
    except BrokenPipeError:
        raise
    except Exception:
        reason = one_line(value) if isinstance(value, BaseException) else f"{type(value).__name__} does not pickle"
        pipe.send((False, VideoError(reason)))


def _end_with_parent(scratch: str) -> None:
    """A parent that was killed can neither stop a child that hangs nor clean up after it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)


def _limit_memory(memory_bytes: int | None) -> None:
    """Make an allocation far beyond the limit fail at once, where the system can do that."""
    if memory_bytes is None or sys.platform == "win32":
        return
    import resource

    limit = psutil.Process().memory_info().vms + _SPACE_PER_BYTE * memory_bytes + _RESERVED_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(OSError, ValueError):  # a system without such a limit still has the parent's
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
