"""Progress of long work: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from curation.table import Part

_PLAIN_EVERY_S = 10.0


class Progress:
    """Counts finished parts: videos, clips by status, hours of footage, speed against real time, time left."""

    def __init__(self, *, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._bar = Bar(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not live,
        )
        self._live = live
        self._task: TaskID | None = None
        self._label, self._total, self._done = "", 0, 0

    def __enter__(self) -> Progress:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, tb)

    def begin(self, label: str, *, total: int) -> None:
        """Start counting a new kind of work."""
        self._label, self._total, self._done = label, total, 0
        self._started = self._said = time.monotonic()
        self._status: dict[str, int] = {}
        self._footage_s = 0.0
        self._task = self._bar.add_task(label, total=total, counts="") if total else None

    def advance(self, part: Part) -> None:
        """Count a finished part."""
        self._done += part.videos.num_rows or part.clips.num_rows
        if part.videos.num_rows and "status" in part.clips.column_names:
            for status in part.clips["status"].to_pylist():
                self._status[status] = self._status.get(status, 0) + 1
            self._footage_s += sum(length or 0.0 for length in part.videos["duration_s"].to_pylist())
        if self._task is not None:
            self._bar.update(self._task, completed=self._done, counts=self._counts())
        now = time.monotonic()
        if not self._live and not self._quiet and (now - self._said > _PLAIN_EVERY_S or self._done >= self._total):
            self._said = now
            self._console.print(f"{self._label}: {self._done}/{self._total} {self._counts()}{self._left(now)}")

    def _counts(self) -> str:
        if not self._footage_s:
            return ""
        speed = self._footage_s / max(1e-6, time.monotonic() - self._started)
        clips = ", ".join(f"{self._status.get(name, 0)} {name}" for name in ("kept", "rejected", "failed"))
        return f"clips: {clips}; {self._footage_s / 3600:.2f} h at {speed:.1f}x real time"

    def _left(self, now: float) -> str:
        if not 0 < self._done < self._total:
            return ""
        left_s = (now - self._started) / self._done * (self._total - self._done)
        return f", about {left_s:.0f} s left"
