"""Frames of a contact sheet as a video file, for servers that take videos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

# Every frame by itself, so that a server that picks some gets those, and little is lost.
_OPTIONS = {"preset": "veryfast", "crf": "14", "g": "1", "threads": "1"}


def mp4(jpegs: Sequence[bytes], fps: float) -> bytes:
    """H.264 in MP4: as many frames as there are JPEGs, at a constant rate, in the size of the first.

    An odd width or height loses a pixel, which the codec cannot hold.

    Raises:
        ValueError: one of them cannot be decoded.
    """
    file, size = io.BytesIO(), None
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=_OPTIONS)
        stream.pix_fmt = "yuv420p"
        for jpeg in jpegs:
            picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            if picture is None:
                raise ValueError("a frame of the contact sheet cannot be decoded")
            if size is None:
                size = stream.width, stream.height = [max(2, side // 2 * 2) for side in picture.shape[1::-1]]
            if picture.shape[1::-1] != tuple(size):
                picture = cv2.resize(picture, tuple(size), interpolation=cv2.INTER_AREA)
            planes = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)  # FFmpeg's conversion rounds greys towards green
            container.mux(stream.encode(VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()
