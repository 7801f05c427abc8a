"""Decoders in child processes: a file that crashes one, or that one hangs on, costs its sample.

Frames come back through memory that both processes share, straight into the batch; only captions and rows go through
the pipe. The memory has no name in any folder, so nothing is left behind when a process is killed.
"""

from __future__ import annotations

import mmap
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from curation.errors import VideoError, one_line
from curation.isolate import Isolated
from training.data.decode import Bad, Decoder, Job, Sample

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

    def submit(self, job: Job, into: np.ndarray) -> Future[Sample | Bad]:
        """Do a job some time; its frames are put ``into`` an array 3 T H W uint8."""
        if self._threads is not None:
            return self._threads.submit(self._do, job, into)
        done: Future[Sample | Bad] = Future()
        done.set_result(self._do_here(job, into))
        return done

    def _do_here(self, job: Job, into: np.ndarray) -> Sample | Bad:
        if self._here is None:
            self._here = Decoder()
            self._here.setup()
        return _delivered(self._here(job), into)

    def _do(self, job: Job, into: np.ndarray) -> Sample | Bad:
        child = self._free.get()
        try:
            if child is None:
                child = _Child(self._stall_s)
            return child(job, into)
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

    def __call__(self, job: Job, into: np.ndarray) -> Sample | Bad:
        memory = self._memory(into.nbytes)
        try:
            made: Sample | Bad = self._process.call(job, memory)
        except VideoError as error:  # it crashed, hung, or grew too large; the next call starts another
            return Bad("crashed", one_line(error))
        if isinstance(made, Sample) and made.video is None:
            assert self._map is not None
            np.copyto(into, np.frombuffer(self._map, np.uint8, into.size).reshape(into.shape))
        return _delivered(made, into)

    def _memory(self, size: int) -> tuple[str, int] | None:
        """The shared file, large enough, as the child can open it."""
        if self._file is None:
            return None
        if self._map is None or len(self._map) < size:
            os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        return f"/proc/{os.getpid()}/fd/{self._file}", len(self._map)

    def close(self) -> None:
        self._process.close()
        self._map = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _delivered(made: Sample | Bad, into: np.ndarray) -> Sample | Bad:
    """A sample without its frames, which are where they were wanted."""
    if isinstance(made, Bad):
        return made
    if made.video is not None:
        np.copyto(into, made.video)
    return made._replace(video=None)
