"""Content fingerprints: a video is known by its bytes, a clip by its video and span."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from typing import ClassVar, Protocol

import pyarrow as pa

from curation.errors import VideoError, one_line
from curation.isolate import Isolated
from curation.stage import Needs
from curation.table import VIDEOS, Part
from curation.video import Video

_CHUNK_BYTES = 1 << 20
_STALL_S, _MEMORY_BYTES = 60.0, 2 << 30  # what opening a file may take
_LONG_BYTES = 4 << 20  # no smaller file is asked how long it is: ten minutes in it would be 56 kbit/s


class Digest(Protocol):
    """Any hash of hashlib."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash a whole file (BLAKE2b, 96 bits, 24 hex digits).

    The whole file is read: hashing is about a hundred times faster than decoding, and samples of a file cannot tell
    two recordings of the same length apart.
    """
    return hash_file(path, hashlib.blake2b(digest_size=12))


def hash_file(path: str | os.PathLike[str], digest: Digest) -> str:
    """Feed a file to a hash in bounded memory and return the hex digest.

    One that grows meanwhile is read up to where it ended: whoever writes it may be faster.
    """
    with open(path, "rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size
        while chunk := file.read(min(left, _CHUNK_BYTES)):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def clip_id(video_id: str, start_s: float, end_s: float) -> str:
    """The id of a span of a video, in microseconds; sorts by video, then by time."""
    return f"{video_id}-{round(start_s * 1e6):011d}-{round(end_s * 1e6):011d}"


class Lengths:
    """Work for a child process: how many seconds a file says its video lasts.

    None where it does not say, or where it cannot be decoded from the middle on.
    """

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, path: str) -> float | None:
        with Video(path) as video:
            return video.declared_duration_s() if video.seekable else None


@dataclasses.dataclass
class Fingerprint:
    """The step that gives every video of a part its ``video_id``, or the reason why it cannot be read."""

    base: str  # relative video names are relative to this folder
    needs: ClassVar[Needs] = Needs()

    def setup(self) -> None:
        self._child: Isolated | None = None  # most files are short, and need none

    def __call__(self, part: Part) -> Part:
        rows = part.videos.to_pylist()
        for row in rows:
            path = os.path.join(self.base, row["video"])
            try:
                found = os.stat(path)
                if not stat.S_ISREG(found.st_mode):
                    raise ValueError("is not a regular file")  # reading a pipe would never end
                row.update(bytes=found.st_size, mtime_ns=found.st_mtime_ns)
                if found.st_size == 0:
                    raise ValueError("the file is empty")
                identity = fingerprint(path)
                now = os.stat(path)
                if (now.st_size, now.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                    raise ValueError("is still being written; run again when it is complete")
                row["video_id"] = identity
                row["duration_s"] = self._declared_length(path) if found.st_size >= _LONG_BYTES else None
            except (OSError, ValueError) as error:
                odd = "\\udc" in row["video"]  # as `find_videos` spells it
                reason = "the file name is not UTF-8; rename it" if odd else f"cannot be read: {one_line(error)}"
                row.update(status="failed", error=reason, num_clips=0)
        part.videos = pa.Table.from_pylist(rows, schema=VIDEOS)
        return part

    def _declared_length(self, path: str) -> float | None:
        if self._child is None:
            self._child = Isolated(Lengths(), stall_s=_STALL_S, memory_bytes=_MEMORY_BYTES)
            self._child.start()
        with contextlib.suppress(VideoError):  # it will be said when it is decoded
            length_s: float | None = self._child.call(path)
            return length_s
        return None

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.close()
