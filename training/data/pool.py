"""Decoders in child processes: a file that crashes one, or that one hangs on, costs its sample.

Frames come back through memory that both processes share, straight into the batch; only captions and rows go through
the pipe. The memory has no name in any folder, so nothing is left behind when a process is killed.
"""

from __future__ import annotations

import mmap
import os
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from curation.errors import VideoError, one_line
from curation.isolate import Isolated
from training.data.decode import Bad, Decoder, Job, Sample

_OPEN_FILES = "/proc/{}/fd/{}"  # of a process: how a child finds memory that has no name
_MEMORY_BYTES = 6 << 30  # of one child: the frames of a long 4K span, twice


class Pool:
    """Does jobs in ``workers`` children, each started when it is first needed.

    Args:
        workers: how many; 0 does them here, when they are submitted, and survives no crash.
        stall_s: a child without a sign of progress for so long is stopped.
    """

    def __init__(self, *, workers: int, stall_s: float) -> None:
        self._stall_s = stall_s
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None
        self._here: Decoder | None = None
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(workers):
            self._free.put(None)

    def submit(self, jobs: Sequence[Job], into: np.ndarray) -> Future[list[Sample | Bad]]:
        """Do jobs of one shape some time, one after the other; frames are put ``into`` an array N 3 T H W uint8.

        Several at once cost one exchange with a child. One that crashes with them does them again, each by itself, so
        that only the sample that is to blame is lost.
        """
        if self._threads is not None:
            return self._threads.submit(self._do, jobs, into)
        done: Future[list[Sample | Bad]] = Future()
        done.set_result(self._do_here(jobs, into))
        return done

    def _do_here(self, jobs: Sequence[Job], into: np.ndarray) -> list[Sample | Bad]:
        if self._here is None:
            self._here = Decoder()
            self._here.setup()
        return [self._here.do(job, place) for job, place in zip(jobs, into, strict=True)]

    def _do(self, jobs: Sequence[Job], into: np.ndarray) -> list[Sample | Bad]:
        child = self._free.get()
        try:
            if child is None:
                child = _Child(self._stall_s)
            return child(jobs, into)
        finally:
            self._free.put(child)

    def pids(self) -> list[int]:
        """Of the children that are not at work."""
        return [child.pid for child in list(self._free.queue) if child is not None and child.pid is not None]

    def close(self) -> None:
        """Wait for the jobs at work, drop the others, and end the children."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        while not self._free.empty():
            if (child := self._free.get()) is not None:
                child.close()


class _Child:
    """A decoder's process with the memory that it puts frames into."""

    def __init__(self, stall_s: float) -> None:
        self._process = Isolated(Decoder(), stall_s=stall_s, memory_bytes=_MEMORY_BYTES)
        self._process.start()
        self._file = os.memfd_create("frames") if hasattr(os, "memfd_create") else None
        self._map: mmap.mmap | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def __call__(self, jobs: Sequence[Job], into: np.ndarray) -> list[Sample | Bad]:
        memory = self._memory(into.nbytes)
        try:
            made: list[Sample | Bad] = self._process.call(jobs, memory)
        except OSError:
            if memory is None:
                raise
            self._drop_memory()  # this system lets no process open another's files; the pipe does as well
            return self(jobs, into)
        except VideoError as error:  # it crashed, hung, or grew too large; the next call starts another
            if len(jobs) == 1:
                return [Bad("crashed", one_line(error))]
            return [one for i, job in enumerate(jobs) for one in self([job], into[i : i + 1])]
        if memory is not None:
            assert self._map is not None
            np.copyto(into, np.frombuffer(self._map, np.uint8, into.size).reshape(into.shape))
            return made
        return [_delivered(one, place) for one, place in zip(made, into, strict=True)]

    def _memory(self, size: int) -> tuple[str, int] | None:
        """The shared file, large enough, as the child can open it."""
        if self._file is None:
            return None
        if self._map is None or len(self._map) < size:
            os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        return _OPEN_FILES.format(os.getpid(), self._file), len(self._map)

    def close(self) -> None:
        self._process.close()
        self._drop_memory()

    def _drop_memory(self) -> None:
        self._map = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _delivered(made: Sample | Bad, into: np.ndarray) -> Sample | Bad:
    """A sample without its frames, which are where they were wanted."""
    if isinstance(made, Bad) or made.video is None:
        return made
    np.copyto(into, made.video)
    return made._replace(video=None)
