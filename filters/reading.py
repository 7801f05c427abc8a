"""Finding and reading lines of text in single pictures, by rapidocr's PP-OCR models, which come inside its package.

Pictures are uint8 H W 3 RGB; corners are float32 4 2 (x, y) in pixels: top left, top right, bottom right, bottom left.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

# The detector's boxes are made for reading and stand off the letters; with this growth of its kernels (rapidocr: 1.6,
# and dilated) they fit the letters on average, from 12 pixels to 110.
_TIGHT = 1.0
_ROOM = 0.2  # line heights that the recogniser, unlike a measure of area, wants to see around the letters
_SURE = 0.5  # a line counts when the recogniser believes what it reads,
_LOOKS = 0.8  # or the detector is this sure that it is text: the recogniser does not know every script
_SCOUT_PX = 320  # long side of the picture in which it is decided whether looking closer is worth it


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """A line of text: where its letters are, and what they say (empty where they could not be read)."""

    corners: np.ndarray
    string: str

    @property
    def height_px(self) -> float:
        """How tall the letters are."""
        return float(np.linalg.norm(self.corners[3] - self.corners[0]))


class Reader:
    """The models, loaded once. They use ``threads`` threads."""

    def __init__(self, *, threads: int, long_side_px: int) -> None:
        from rapidocr import RapidOCR

        shared = {
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.limit_type": "max",
        }
        close = {"Det.limit_side_len": long_side_px, "Det.unclip_ratio": _TIGHT, "Det.use_dilation": False}
        coarse = {"Det.limit_side_len": _SCOUT_PX, "Det.thresh": 0.1, "Det.box_thresh": 0.1}
        self._finder = RapidOCR(params={**shared, **close})
        self._scout = RapidOCR(params={**shared, **coarse})

    def suspects(self, picture: np.ndarray) -> bool:
        """Whether a quick look at a small copy of the picture sees anything that might be text."""
        found = self._scout(_bgr(picture), use_det=True, use_rec=False, use_cls=False)
        return found.boxes is not None

    def lines(self, picture: np.ndarray) -> list[Line]:
        """The lines of text in a picture, in reading order."""
        found: Any = self._finder(_bgr(picture), use_det=True, use_rec=False, use_cls=False)
        if found.boxes is None:
            return []
        lines = []
        for corners, looks in zip(found.boxes, found.scores, strict=True):
            string, sure = self._read(_bgr(picture), corners.astype(np.float32))
            if sure >= _SURE or looks >= _LOOKS:
                lines.append(Line(corners.astype(np.float32), string if sure >= _SURE else ""))
        return lines

    def _read(self, picture: np.ndarray, corners: np.ndarray) -> tuple[str, float]:
        read: Any = self._finder(_cut_out(picture, corners), use_det=False, use_rec=True, use_cls=False)
        if not read.txts or not read.txts[0].strip():
            return "", 0.0
        return read.txts[0].strip(), float(read.scores[0])


def _bgr(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def _cut_out(picture: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The line of text set upright, with some room around it; one that runs downwards is turned."""
    right, down = corners[1] - corners[0], corners[3] - corners[0]
    width, height = float(np.linalg.norm(right)), float(np.linalg.norm(down))
    room = _ROOM * min(width, height)
    along, across = right / max(width, 1.0) * room, down / max(height, 1.0) * room
    roomy = corners + np.stack([-along - across, along - across, along + across, -along + across])
    size = max(1, round(width + 2 * room)), max(1, round(height + 2 * room))
    target = np.array([[0, 0], [size[0], 0], size, [0, size[1]]], np.float32)
    matrix = cv2.getPerspectiveTransform(roomy.astype(np.float32), target)
    line = cv2.warpPerspective(picture, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.rot90(line) if size[1] >= 1.5 * size[0] else line
