"""Working on hostile data in a child process: a crash or a hang costs one call, not the run."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import BrokenExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from curation.errors import CutroomError, VideoError, one_line

_CALLS_PER_CHILD = 500  # a fresh child now and then bounds what leaking decoders can hold
_POLL_S = 0.5

_beat: Any = None  # in the child: shared time of the last sign of progress
_worker: Any = None  # in the child: what does the work, and whether it is set up
_ready = False


def alive() -> None:
    """Tell the parent that work goes on. Call it at least once per frame; does nothing outside a child."""
    if _beat is not None:
        _beat.value = time.monotonic()


class Worker(Protocol):
    """What runs in the child: sent there once, set up there once."""

    def setup(self) -> None: ...
    def __call__(self, *args: Any) -> Any: ...


def _remember(beat: Any, worker: Worker) -> None:
    global _beat, _worker
    _beat, _worker = beat, worker


def _prepare() -> None:
    global _ready
    if not _ready:
        import cv2

        cv2.setNumThreads(1)  # the engine runs one worker per CPU
        _worker.setup()
        _ready = True


def _call(args: tuple[Any, ...]) -> Any:
    _prepare()
    alive()
    return _worker(*args)


class Isolated:
    """A child process that does one piece of work at a time and is replaced when it crashes or hangs."""

    def __init__(self, worker: Worker, *, stall_s: float) -> None:
        context = multiprocessing.get_context("spawn")  # decoders do not survive a fork
        self._stall_s = stall_s
        self._beat = context.Value("d", time.monotonic(), lock=False)
        self._pool = ProcessPool(
            max_workers=1,
            max_tasks=_CALLS_PER_CHILD,
            context=context,
            initializer=_remember,
            initargs=(self._beat, worker),
        )

    def start(self) -> None:
        """Start the child and set its worker up, so that what is wrong here is not taken for a fault of a video.

        Raises:
            CutroomError: no child can be started.
            Exception: whatever the worker's ``setup`` raised.
        """
        try:
            self._wait(self._pool.schedule(_prepare))
        except (VideoError, BrokenExecutor, RuntimeError) as error:
            raise CutroomError(
                f"the decoder's process cannot be started ({one_line(error)}). In a script of your own, "
                "call run() below `if __name__ == '__main__':`"
            ) from error

    def call(self, *args: Any) -> Any:
        """Let the worker do one piece of work.

        Raises:
            VideoError: the child died, or made no progress for ``stall_s`` seconds.
            Exception: whatever the worker raised.
        """
        return self._wait(self._pool.schedule(_call, args=(args,)))

    def _wait(self, future: Any) -> Any:
        self._beat.value = time.monotonic()
        while True:
            try:
                return future.result(timeout=_POLL_S)
            except NotYet:
                if future.done():
                    raise
                if time.monotonic() - self._beat.value > self._stall_s:
                    future.cancel()
                    raise VideoError(f"the decoder made no progress for {self._stall_s:g} s and was stopped") from None
            except ProcessExpired as error:
                raise VideoError(f"the decoder crashed (exit code {error.exitcode})") from None

    def close(self) -> None:
        self._pool.stop()
        self._pool.join(timeout=5)
