"""Whether a file was cut off, for containers that say where they end but not how long they play, or not reliably.

FFmpeg takes the end of a file for the end of the film. Here only sizes are read, and nothing is allocated by them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

_MOST_BOXES = 100_000  # a file of empty boxes must not keep us busy
_TS_PACKETS = ((188, 0), (192, 4))  # sizes, and where their sync byte stands
_OGG_PAGE = 27 + 255 + 255 * 255  # the largest
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def cut_off(path: str | os.PathLike[str]) -> str | None:
    """Say what a container shows of its missing end.

    Known are MP4 and MOV, Matroska, AVI, ASF, GIF, Ogg and transport streams; of others (raw streams, MPEG program
    streams) nothing is known, nor of a transport stream cut between two packets.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(256)
        for looks_like, end in _CONTAINERS:
            if looks_like(head):
                missing = end(file, size)
                if missing is None:
                    return None
                return f"cut off (at least {missing} bytes missing)" if missing else "cut off (the end mark is missing)"
    return None


def _boxes_end(file: BinaryIO, size: int) -> int | None:
    """MP4: the last box reaches beyond the end of the file."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        # The end, a box that goes on to the end, or nonsense.
        if len(head) < 8 or length < 8 or not head[4:8].isascii():
            return None
        at += length
        if at > size:
            return at - size
    return None


def _riff_end(file: BinaryIO, size: int) -> int | None:
    """AVI: RIFF chunks follow each other, of a gigabyte each."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length == 0:
            return None
        at += 8 + length
    return at - size if at > size else None


def _segment_end(file: BinaryIO, size: int) -> int | None:
    """Matroska: an EBML header, then a segment of a known or unknown size."""
    at = 0
    for identity in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        file.seek(at)
        head = file.read(12)
        width = 9 - head[4].bit_length() if len(head) == 12 else 9  # of the length, by its leading zeros
        if head[:4] != identity or width > 8:
            return None
        most = (1 << 7 * width) - 1
        length = int.from_bytes(head[4 : 4 + width], "big") & most
        if length == most:  # a live stream: unknown
            return None
        at += 4 + width + length
    return at - size if at > size else None


def _asf_end(file: BinaryIO, size: int) -> int | None:
    """ASF: the file properties give the size of the file, unless it was a broadcast."""
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or head[at + 88 : at + 89] in (b"", b"\x01", b"\x03"):
        return None
    length = int.from_bytes(head[at + 40 : at + 48], "little")
    return length - size if length > size else None


def _gif_end(file: BinaryIO, size: int) -> int | None:
    file.seek(max(0, size - 4096))
    return None if file.read().rstrip(b"\0").endswith(b";") else 0


def _ogg_end(file: BinaryIO, size: int) -> int | None:
    """Ogg: the last page is whole and says that it is the last of its stream."""
    file.seek(max(0, size - _OGG_PAGE))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    missing = 27 + len(segments) + sum(segments) - len(page)
    if missing > 0:
        return missing
    return None if len(page) > 5 and page[5] & 4 else 0


def _packets_end(file: BinaryIO, size: int) -> int | None:
    """A transport stream: packets of one size."""
    file.seek(0)
    head = file.read(256)
    length = next(n for n, sync in _TS_PACKETS if _syncs(head, n, sync))
    return length - size % length if size % length else None


def _syncs(head: bytes, length: int, sync: int) -> bool:
    return head[sync : sync + 1] == head[sync + length : sync + length + 1] == b"G"


_CONTAINERS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], int | None]], ...] = (
    (lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"), _boxes_end),
    (lambda head: head[:4] == b"RIFF", _riff_end),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _segment_end),
    (lambda head: head[:4] == b"\x30\x26\xb2\x75", _asf_end),
    (lambda head: head[:4] == b"GIF8", _gif_end),
    (lambda head: head[:4] == b"OggS", _ogg_end),
    (lambda head: any(_syncs(head, n, sync) for n, sync in _TS_PACKETS), _packets_end),
)
