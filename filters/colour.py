"""How colourful a clip is."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter


@dataclasses.dataclass(kw_only=True)
class Colour(Filter):
    """Variety of colours, as people judge it.

    Writes:
        colorfulness: mean over frames of the measure of Hasler and Suesstrunk (Measuring colourfulness in natural
            images, 2003), pictures of one size: 0 grey, 15 slightly, 33 moderately, 59 quite, 109 extremely colourful.
    """

    name: ClassVar[str] = "colour"
    frames: ClassVar[Frames] = Frames(fps=2, long_side_px=160, colour="rgb")
    writes: ClassVar[pa.Schema] = pa.schema([("colorfulness", pa.float32())])

    def score(self, frames: np.ndarray, times: np.ndarray) -> Any:
        return float(np.mean([colorfulness(frame) for frame in frames])) if len(frames) else None


def colorfulness(picture: np.ndarray) -> float:
    """Of a picture H W 3, RGB."""
    red, green, blue = (picture[..., i].astype(np.float32) for i in range(3))
    opponents = [red - green, (red + green) / 2 - blue]
    means, deviations = zip(*(cv2.meanStdDev(opponent) for opponent in opponents), strict=True)
    return float(np.linalg.norm(deviations) + 0.3 * np.linalg.norm(means))
