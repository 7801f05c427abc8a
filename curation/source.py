"""Opening a stranger's video file: only formats that hold their own pictures, and nothing else that a file may name."""

from __future__ import annotations

import os

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# Playlists and the like (concat, hls, dash, sdp, image2) make FFmpeg read any other file or address that they name;
# pictures are no videos.
_FORMATS = (
    "apng,asf,avi,avs2,avs3,cavsvideo,dirac,dnxhd,dv,evc,flv,gif,gxf,h261,h263,h264,hevc,ivf,live_flv,m4v,matroska,mjpeg,"
    "mov,mpeg,mpegts,mpegvideo,mxf,nsv,nut,obu,ogg,rm,vc1,vc1test,vvc,wtv,yuv4mpegpipe"
)
MOST_PIXELS = str(16384 * 8192)  # of a frame: four times 8K. FFmpeg refuses more before it allocates anything
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_pixels": MOST_PIXELS}
_INDEXED = {"matroska", "mov"}
# Of the others, program streams (mpeg) and MXF were seen to give other frames after a seek.
_SEEKABLE = {*_INDEXED, "avi", "flv", "mpegts"}


def open_source(path: str | os.PathLike[str]) -> InputContainer:
    """Open a video file for reading.

    Raises:
        FFmpegError, OSError, ValueError: it cannot be opened.
    """
    return av.open(f"file:{os.fspath(path)}", metadata_errors="replace", options=_OPTIONS)


def is_seekable(container: InputContainer) -> bool:
    """Whether timestamps are the same after a seek, as far as the container's kind tells."""
    return bool(_SEEKABLE & set(container.format.name.split(",")))


def is_indexed(container: InputContainer) -> bool:
    """Whether the container is of a kind that says of each packet when it is shown and where it lies."""
    return bool(_INDEXED & set(container.format.name.split(",")))


def moving_pictures(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)
