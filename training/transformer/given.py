"""Pictures and videos that a sample begins or ends with: reading them, and fitting them to its size."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from curation.errors import UsageError, VideoError
from curation.video import Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What is given, (T, H, W, 3) uint8 each.

    Attributes:
        image: the first frame for image-to-video, one frame.
        before: the frames that are continued.
        after: the frame that is led to.
        fps: of the video that is continued.
    """

    image: np.ndarray | None = None
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    fps: float | None = None

    def fitted(self, height: int, width: int) -> Given:
        """All scaled to cover ``height`` x ``width`` and cut to it from the middle; what has that size stays."""
        image, before, after = (
            None if frames is None else fit(frames, height, width) for frames in (self.image, self.before, self.after)
        )
        return Given(image=image, before=before, after=after, fps=self.fps)

    def identities(self) -> dict[str, str]:
        """The digest of the pixels of each."""
        return {
            name: hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=8).hexdigest()
            for name, frames in self._there().items()
        }

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Image (1, 3, H, W), frames before and after (1, 3, T, H, W), in -1..1."""
        image, before, after = (
            None if frames is None else torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            for frames in (self.image, self.before, self.after)
        )
        return None if image is None else image[:, :, 0], before, after

    def _there(self) -> dict[str, np.ndarray]:
        named = {"image": self.image, "before": self.before, "after": self.after}
        return {name: frames for name, frames in named.items() if frames is not None}


def read_given(image: Path | None, first: Path | None, last: Path | None, extend: Path | None) -> Given:
    """Read what is named. UsageError if a file is not there or cannot be read."""
    before, fps = (None, None) if extend is None else read_video(extend)
    return Given(
        image=None if image is None else read_picture(image),
        before=before if first is None else read_picture(first),
        after=None if last is None else read_picture(last),
        fps=fps,
    )


def read_picture(file: Path) -> np.ndarray:
    """A picture as one frame (1, H, W, 3) uint8 RGB, upright as its EXIF says."""
    if not file.is_file():
        raise UsageError(f"there is no picture {file}")
    picture = (
        cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR) if file.stat().st_size else None
    )
    if picture is None:
        raise UsageError(f"{file} is no picture that can be read; JPEG, PNG and WebP can")
    return np.ascontiguousarray(picture[None, :, :, ::-1])


def read_video(file: Path) -> tuple[np.ndarray, float]:
    """All frames of a video (T, H, W, 3) uint8 RGB, upright, and its frames per second."""
    if not file.is_file():
        raise UsageError(f"there is no video {file}")
    frames, times = [], []
    try:
        with Video(file, threads=0) as video:
            for frame in video.frames():
                frames.append(np.ascontiguousarray(frame.picture(video.width, video.height)[:, :, ::-1]))
                times.append(frame.t_s)
    except VideoError as error:
        raise UsageError(f"{file} {error}") from error
    span_s = times[-1] - times[0]
    return np.stack(frames), (len(times) - 1) / span_s if span_s > 0 else 25.0


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """(T, H, W, 3) scaled to cover ``height`` x ``width``, and cut to it from the middle."""
    if frames.shape[1:3] == (height, width):
        return frames
    scale = max(height / frames.shape[1], width / frames.shape[2])
    tall, wide = max(height, round(frames.shape[1] * scale)), max(width, round(frames.shape[2] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    top, left = (tall - height) // 2, (wide - width) // 2
    scaled = (cv2.resize(frame, (wide, tall), interpolation=how) for frame in frames)
    return np.stack([frame[top : top + height, left : left + width] for frame in scaled])
