"""Videos and contact sheets of what a model makes, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from torch import Tensor

from curation.files import aside
from training.quality import to_unit

_GAP_PX = 2


def to_frames(video: Tensor) -> np.ndarray:
    """(C, T, H, W) in -1..1 to (T, H, W, 3) uint8."""
    frames: np.ndarray = (to_unit(video) * 255).round().byte().permute(1, 2, 3, 0).cpu().numpy()
    return frames


def write_video(path: Path, frames: np.ndarray, *, fps: float) -> None:
    """(T, H, W, 3) uint8 to an MP4 that every player shows. Odd sizes lose their last row or column."""
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with aside(path) as file, av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def beside(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Videos of one shape, (T, H, W, 3) each, next to each other with a white line between them."""
    num_frames, height = videos[0].shape[:2]
    line = np.full((num_frames, height, _GAP_PX, 3), 255, np.uint8)
    parts = [part for video in videos for part in (line, video)][1:]
    return np.concatenate(parts, axis=2)


def contact_sheet(rows: Sequence[np.ndarray], *, columns: int = 8) -> np.ndarray:
    """One row of frames, evenly spaced, for each video (T, H, W, 3) of one size; (H', W', 3) uint8."""
    drawn = []
    for video in rows:
        chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
        padded = np.zeros((columns, *video.shape[1:]), np.uint8)
        padded[: len(chosen)] = video[chosen]
        drawn.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(drawn, axis=0)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """(H, W, 3) uint8 RGB to a JPEG or PNG, by the name."""
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path} cannot be encoded")
    path.write_bytes(data.tobytes())
