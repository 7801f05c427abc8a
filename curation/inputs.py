"""Finding the videos a user means: files, folders, globs and lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from curation.errors import UsageError

VIDEO_SUFFIXES = frozenset(
    (
        ".264",
        ".265",
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".h264",
        ".h265",
        ".hevc",
        ".ivf",
        ".m1v",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    )
)
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})


class Inputs(NamedTuple):
    """The videos found, sorted and without repeats, and how many other files the folders held."""

    videos: list[str]
    num_ignored: int


def find_videos(inputs: Iterable[str], *, base: str | os.PathLike[str] | None = None) -> Inputs:
    """Resolve what a user gave as inputs.

    Args:
        inputs: files, folders (searched with all their subfolders for files with a video's suffix), globs, or text
            files with one path per line (relative to the list; blank lines and lines starting with # are skipped).
        base: relative paths come back relative to this folder; None is the current one.

    Returns:
        Paths as given, normalised. A file that a list names is returned even if it is missing: it becomes a failed row.

    Raises:
        UsageError: an input does not exist or holds no video.
    """
    base = os.path.abspath(base or os.getcwd())
    found: dict[str, str] = {}  # real path -> path as given
    ignored = 0
    given = list(inputs)
    if not given:
        raise UsageError("no input: give a file, a folder, a glob or a list with --input PATH")
    for entry in given:
        if "://" in entry:
            raise UsageError(f"--input {entry}: only local paths are read; mount or download the bucket first")
        videos, others = _expand(entry)
        ignored += others
        if not videos:
            hint = f" ({others} files with other suffixes)" if others else ""
            raise UsageError(
                f"--input {entry}: no video in it{hint}. Suffixes looked for: {' '.join(sorted(VIDEO_SUFFIXES))}"
            )
        for video in videos:
            absolute = os.path.abspath(video)
            as_given = os.path.normpath(video) if os.path.isabs(video) else os.path.relpath(absolute, base)
            # A name that is no UTF-8 cannot stand in a table; spelt out it becomes a failed row.
            as_given = as_given.encode("utf-8", "backslashreplace").decode()
            real = os.path.realpath(absolute)
            found[real] = min(found.get(real, as_given), as_given)  # of several names, whatever their order
    return Inputs(sorted(found.values()), ignored)


def _expand(entry: str) -> tuple[list[str], int]:
    if os.path.isdir(entry):
        files = list(_walk(entry))
        videos = [file for file in files if Path(file).suffix.lower() in VIDEO_SUFFIXES]
        return videos, len(files) - len(videos)
    if os.path.isfile(entry):
        return (_read_list(entry), 0) if Path(entry).suffix.lower() in LIST_SUFFIXES else ([entry], 0)
    if glob.has_magic(entry):
        matches = [match for match in glob.glob(entry, recursive=True) if os.path.isfile(match)]
        videos = [match for match in matches if Path(match).suffix.lower() in VIDEO_SUFFIXES]
        if not matches:
            raise UsageError(f"--input {entry}: the pattern matches no file")
        return videos, len(matches) - len(videos)
    raise UsageError(f"--input {entry}: no such file or folder")


def _walk(folder: str) -> Iterator[str]:
    """All files below a folder, following links but never in circles; names that start with a dot are skipped."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(files) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise UsageError(f"--input: the folder {error.filename} cannot be read: {error.strerror}") from error


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"--input {path}: a list of paths must be UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"--input {path}: cannot be read: {error.strerror}") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [os.path.join(os.path.dirname(path), name) for name in names]
