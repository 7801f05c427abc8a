"""Opening a video that lies in memory or in a shard, in the formats that shards hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer

_OPTIONS = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "none"}


def open_video(file: Any, *, quick: bool = False) -> InputContainer:
    """Open a video that lies in memory or in a tar, in one of the formats of ``VIDEO_SUFFIXES``.

    A playlist that calls itself a video would make FFmpeg read any file or address that it names.

    Args:
        file: bytes that can be sought.
        quick: look at no picture. FFmpeg decodes the first ones when it opens a file (20 ms at 720p, and this takes
            0.6 ms); but streams that do not say how far their frames are out of order may lose some without that.
    """
    import av

    streams: Any = [{"skip_frame": "all"}] if quick else []
    return av.open(file, "r", metadata_errors="replace", options=_OPTIONS, stream_options=streams)
