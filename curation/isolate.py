"""Running a function on hostile data in a child process: a crash or a hang costs one call, not the run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYet
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from curation.errors import VideoError

T = TypeVar("T")
_CALLS_PER_CHILD = 500  # a fresh child now and then bounds what leaking decoders can hold
_POLL_S = 0.5

_beat: Any = None  # in the child: shared time of the last sign of progress


def alive() -> None:
    """Tell the parent that work goes on. Call it at least once per frame; does nothing outside a child."""
    if _beat is not None:
        _beat.value = time.monotonic()


def _remember_beat(beat: Any) -> None:
    global _beat
    _beat = beat


def _quiet(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    import cv2

    cv2.setNumThreads(1)  # the engine runs one worker per CPU
    alive()
    return function(*args)


class Isolated:
    """A child process that calls functions one at a time and is replaced when it crashes or hangs."""

    def __init__(self, *, stall_s: float) -> None:
        context = multiprocessing.get_context("spawn")  # decoders do not survive a fork
        self._stall_s = stall_s
        self._beat = context.Value("d", time.monotonic(), lock=False)
        self._pool = ProcessPool(
            max_workers=1,
            max_tasks=_CALLS_PER_CHILD,
            context=context,
            initializer=_remember_beat,
            initargs=(self._beat,),
        )

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function(*args)`` in the child.

        Raises:
            VideoError: the child died, or made no progress for ``stall_s`` seconds.
            Exception: whatever the function raised.
        """
        self._beat.value = time.monotonic()
        future = self._pool.schedule(_quiet, args=(function, args))
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
