"""The frames of a contact sheet as pictures, or as a video, for models that are asked in this process."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captioning.requests import Request

if TYPE_CHECKING:
    from PIL.Image import Image

_FASTEST_FPS = 4.0  # see frame_rate
_UNKNOWN_FPS = 2.0


def decode(jpegs: Sequence[bytes], *, alike: bool) -> list[Image]:
    """Pictures as RGB; ``alike`` brings them to the size of the first, because a video has one size."""
    from PIL import Image

    images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    if alike:
        images = [image if image.size == images[0].size else image.resize(images[0].size) for image in images]
    return images


def is_whole(jpeg: bytes) -> bool:
    """Whether a picture can be decoded to its end. It is at an eighth of its size, in half the time."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception:  # Pillow raises anything of damage
        return False
    return True


def metadata_of(request: Request, images: Sequence[Image]) -> dict[str, Any]:
    """What a video processor wants to know of a video whose every frame is given."""
    fps = frame_rate(request.times)
    return {
        "total_num_frames": len(images),
        "fps": fps,
        "width": images[0].width,
        "height": images[0].height,
        "duration": len(images) / fps,
        "frames_indices": list(range(len(images))),
    }


def frame_rate(times: Sequence[float]) -> float:
    """Frames per second of a contact sheet.

    No more than 4: Qwen2.5-VL counts time in half seconds and joins frames in twos, so from closer frames on its
    positions in time would be rounded to the same ones, and what happened first could not be told. Without a rate
    it would take 24, with that effect.
    """
    if len(times) < 2 or times[-1] <= times[0]:
        return _UNKNOWN_FPS
    return min(_FASTEST_FPS, (len(times) - 1) / (times[-1] - times[0]))
