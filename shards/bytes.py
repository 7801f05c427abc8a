"""Reading spans of bytes from files that lie anywhere: on a disk, behind http(s), or in a store that fsspec knows.

Nothing is downloaded whole: a sample is one read of its own bytes. One ``Bytes`` serves one process or thread.
"""

from __future__ import annotations

import collections
import io
import os
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from curation.errors import UsageError, one_line

_MOST_OPEN = 32  # local files that stay open
_RETRIES = 4  # of a request over http; with pauses of 0.5, 1, 2 s between them
_TIMEOUT_S = 30.0
_AHEAD_BYTES = 1 << 16  # what RangeFile reads at a time: the end of one sample and the header of the next


class Stat(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    stamp: str  # its time of change, ETag, or whatever the store has of that kind


class Bytes:
    """Random reads. Local files and http connections are kept open between them."""

    def __init__(self) -> None:
        self._files: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._http: Any = None

    def read(self, url: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer where the file ends.

        Raises:
            OSError: they cannot be read.
        """
        if size <= 0:
            return b""
        if is_http(url):
            return self._read_http(url, offset, size)
        if is_remote(url):
            return _in_os_errors(url, _read_fsspec, url, offset, size)
        return _read_at(self._file(url), offset, size)

    def whole(self, url: str) -> bytes:
        """All bytes of a small file.

        Raises:
            OSError: they cannot be read.
        """
        return self.read(url, 0, self.stat(url).size)

    def stat(self, url: str) -> Stat:
        """Size and version of a file.

        Raises:
            OSError: there is none, or it cannot be asked for.
        """
        if is_http(url):
            return self._stat_http(url)
        if is_remote(url):
            return _in_os_errors(url, _stat_fsspec, url)
        found = os.stat(url)
        return Stat(found.st_size, str(found.st_mtime_ns))

    def close(self) -> None:
        """Close what is kept open."""
        while self._files:
            os.close(self._files.popitem()[1])
        if self._http is not None:
            self._http.clear()
            self._http = None

    def __del__(self) -> None:
        self.close()

    def _file(self, path: str) -> int:
        if path not in self._files:
            if len(self._files) >= _MOST_OPEN:
                os.close(self._files.popitem(last=False)[1])
            self._files[path] = os.open(path, os.O_RDONLY)
        self._files.move_to_end(path)
        return self._files[path]

    def _request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        import urllib3

        if self._http is None:
            retries = urllib3.Retry(_RETRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
            told: dict[str, Any] = {"retries": retries, "timeout": urllib3.Timeout(_TIMEOUT_S)}
            proxy = urllib.request.getproxies().get(urlsplit(url).scheme)
            bypass = proxy is None or urllib.request.proxy_bypass(urlsplit(url).hostname or "")
            self._http = urllib3.PoolManager(**told) if bypass else urllib3.ProxyManager(str(proxy), **told)
        try:
            return self._http.request(method, url, headers={"Accept-Encoding": "identity", **headers})
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"{hidden(url)}: {one_line(error)}") from error

    def _read_http(self, url: str, offset: int, size: int) -> bytes:
        answer = self._request("GET", url, {"Range": f"bytes={offset}-{offset + size - 1}"})
        if answer.status == 416:  # nothing lies there
            return b""
        if answer.status != 206:
            why = "the server does not read ranges" if answer.status == 200 else f"status {answer.status}"
            raise OSError(f"{hidden(url)}: {why}")
        return bytes(answer.data)

    def _stat_http(self, url: str) -> Stat:
        # One byte instead of HEAD: addresses that are signed for reading refuse HEAD, and this shows that ranges work.
        answer = self._request("GET", url, {"Range": "bytes=0-0"})
        if answer.status != 206:
            why = "the server does not read ranges" if answer.status == 200 else f"status {answer.status}"
            raise OSError(f"{hidden(url)}: {why}")
        size = int(answer.headers["Content-Range"].rpartition("/")[2])
        return Stat(size, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


class RangeFile(io.RawIOBase):
    """A part of a file, as a file that can be read and sought; reads a block ahead where reading costs a request."""

    def __init__(self, reader: Bytes, url: str, offset: int, size: int) -> None:
        self._reader, self._url, self._offset, self._size = reader, url, offset, size
        self._ahead = _AHEAD_BYTES if is_remote(url) else 0
        self._at = self._block_at = 0
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size < 0 else min(size, left)
        data = self._buffered(size) if self._ahead else self._reader.read(self._url, self._offset + self._at, size)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _buffered(self, size: int) -> bytes:
        within = self._at - self._block_at
        if not (within >= 0 and within + size <= len(self._block)):
            wanted = min(max(size, self._ahead), self._size - self._at)
            self._block_at, within = self._at, 0
            self._block = self._reader.read(self._url, self._offset + self._at, wanted)
        return self._block[within : within + size]


def is_remote(url: str) -> bool:
    """Whether this is an address and no path of this machine."""
    return "://" in url


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def beside(url: str, name: str) -> str:
    """The address of ``name`` as a file at ``url`` names it: relative to where that file lies."""
    if is_remote(name):
        return name
    if not is_remote(url):
        return os.path.join(os.path.dirname(url), name)
    if os.path.isabs(name):
        raise UsageError(f"{hidden(url)} names {name}, which lies on no machine that can be told; use a relative name")
    parts = urlsplit(url)  # the query stays: it may be the signature
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}"))


def hidden(url: str) -> str:
    """An address for messages and logs: without user, password and query, which may be secrets."""
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def file_name(url: str) -> str:
    """The last part of a path or address."""
    return Path(urlsplit(url).path if is_remote(url) else url).name


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for an address, and the path in it.

    Raises:
        UsageError: fsspec, or the package that it needs for such an address, is not installed.
    """
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        raise UsageError(f"{hidden(url)}: reading {scheme}:// needs a package ({error}); pip install it") from error
    except ValueError as error:
        raise UsageError(f"{hidden(url)}: {error}") from error
    return fs, path


def _read_fsspec(url: str, offset: int, size: int) -> bytes:
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path, start=offset, end=offset + size))


def _stat_fsspec(url: str) -> Stat:
    fs, path = filesystem(url)
    about = fs.info(path)
    stamps = (about.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"))
    return Stat(int(about["size"]), str(next((stamp for stamp in stamps if stamp), "")))


def _in_os_errors(url: str, ask: Any, *args: Any) -> Any:
    """Stores raise errors of their own; here a file that cannot be read is an OSError."""
    try:
        return ask(*args)
    except (OSError, UsageError):
        raise
    except Exception as error:
        raise OSError(f"{hidden(url)}: {one_line(error)}") from error


def _read_at(file: int, offset: int, size: int) -> bytes:
    """One read gives at most 2 GB, and fewer bytes where the file lies on a network."""
    pieces, left = [], size
    while left and (piece := os.pread(file, left, offset + size - left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
