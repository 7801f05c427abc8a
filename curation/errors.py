"""Every error Cutroom raises on purpose.

CutroomError
├── UsageError       the request is wrong; said before work starts, exit status 2
│   └── ConfigError  the mistake stands in a YAML file (file:line:column)
│       └── MissingError  a pipeline needs a package or weights that are not on this machine
├── VideoError       a source file cannot be used; becomes a failed row, never stops a run
├── StageError       a stage broke its contract (a bug in the stage, not in the data)
├── NotNowError      a clip cannot be done now, through no fault of its own; the next run tries again
└── TableError       an output directory is damaged
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CutroomError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(CutroomError, ValueError):
    """The request is wrong. The message names the thing, the value and the fix."""


class ConfigError(UsageError):
    """A mistake in a YAML file, with the place where it stands."""

    def __init__(self, message: str, *, file: str, line: int, column: int) -> None:
        super().__init__(f"{file}:{line}:{column}: {message}")


class MissingError(ConfigError):
    """A stage needs a package or weights that are not on this machine. The message says how to get them."""


class VideoError(CutroomError, ValueError):
    """A source file cannot be opened, decoded or cut."""


class StageError(CutroomError, RuntimeError):
    """A stage returned something else than it declared."""


class NotNowError(CutroomError):
    """A server is away, a cap is reached: the clip fails, and the next run tries again."""


class TableError(CutroomError, RuntimeError):
    """A file of an output directory is missing or damaged."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say what ``name`` was probably meant to be: `` Did you mean 'motion'?`` plus the valid names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"{guess} Valid: {', '.join(names)}."


def one_line(error: BaseException) -> str:
    """``VideoError: cannot open`` — the form in which an error is stored in a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]
