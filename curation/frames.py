"""How a filter asks for frames, and how it gets them. One decode serves every request.

Suffixes in this file: T frames, H height, W width; pictures are uint8 and upright (rotation and pixel aspect applied).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pyarrow as pa

PACKED = pa.struct(
    [("t_s", pa.list_(pa.float64())), ("shape", pa.list_(pa.int32())), ("pixels", pa.large_binary())],
)
SHEET = pa.list_(pa.struct([("t_s", pa.float64()), ("jpeg", pa.binary())]))


@dataclasses.dataclass(frozen=True)
class Frames:
    """A request for frames: how many a second, how large, grey or colour.

    Attributes:
        fps: frames per second on a time grid (nearest frame of the source); ``None`` means the contact sheet.
        long_side_px: the longer side of the picture is scaled to this; ``None`` leaves it as it is.
        colour: ``grey`` gives T H W, ``rgb`` gives T H W 3.
        every: of decoded frames, a clip's first and then one in so many: few, and yet some of each short clip.
    """

    fps: float | None
    long_side_px: int | None
    colour: Literal["grey", "rgb"] = "grey"
    every: int = 1

    @classmethod
    def sheet(cls, *, long_side_px: int | None, colour: Literal["grey", "rgb"] = "rgb") -> Frames:
        """Ask for the contact sheet's frames instead of decoded ones."""
        return cls(fps=None, long_side_px=long_side_px, colour=colour)

    @property
    def column(self) -> str:
        """The column of the clip batch that carries these frames."""
        size = "full" if self.long_side_px is None else f"{self.long_side_px}px"
        few = f"_every{self.every}" if self.every > 1 else ""
        return "frames" if self.fps is None else f"frames_{self.fps:g}fps_{size}_{self.colour}{few}"

    def unpack(self, value: pa.Scalar) -> tuple[np.ndarray, np.ndarray]:
        """Turn one cell of ``column`` into (frames, times)."""
        if self.fps is None:
            return self._from_sheet(value.as_py() or [])
        times = np.array(value["t_s"].as_py(), dtype=np.float64)
        shape = value["shape"].as_py()
        pixels = np.frombuffer(value["pixels"].as_buffer(), dtype=np.uint8)
        return pixels.reshape(shape), times

    def _from_sheet(self, cells: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        import cv2

        flag = cv2.IMREAD_GRAYSCALE if self.colour == "grey" else cv2.IMREAD_COLOR_RGB
        pictures = [np.asarray(cv2.imdecode(np.frombuffer(cell["jpeg"], np.uint8), flag)) for cell in cells]
        sized = [fit(picture, self.long_side_px) for picture in pictures]
        times = np.array([cell["t_s"] for cell in cells], dtype=np.float64)
        return (np.stack(sized) if sized else np.empty((0, 0, 0), np.uint8)), times


def pack(frames: np.ndarray, times: np.ndarray) -> dict[str, Any]:
    """The cell that ``Frames.unpack`` reads, for frames T H W or T H W 3."""
    return {"t_s": times.tolist(), "shape": list(frames.shape), "pixels": frames.tobytes()}


def scaled_size(width: int, height: int, long_side_px: int) -> tuple[int, int]:
    """(width, height) with the longer side scaled to ``long_side_px`` and the aspect kept."""
    scale = long_side_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit(picture: np.ndarray, long_side_px: int | None) -> np.ndarray:
    """Scale a picture H W (3) so that its longer side is ``long_side_px``; None leaves it as it is."""
    import cv2

    if long_side_px is None:
        return picture
    size = scaled_size(picture.shape[1], picture.shape[0], long_side_px)
    if size == (picture.shape[1], picture.shape[0]):
        return picture
    shrinking = size[0] < picture.shape[1]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR))
