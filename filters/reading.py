"""Finding and reading lines of text in single pictures, by rapidocr's PP-OCR models, which come inside its package.

Pictures are uint8 H W 3 RGB; corners are float32 4 2 (x, y) in pixels: top left, top right, bottom right, bottom left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# The detector's boxes are made for reading and stand off the letters; with this growth of its kernels (rapidocr: 1.6,
# and dilated) they fit the letters on average, from 12 pixels to 110.
_TIGHT = 1.0
_ROOM = 0.2  # line heights that the recogniser, unlike a measure of area, wants to see around the letters
# A line counts when it was read with this confidence; a single sign, of which textures make many, with more. The
# recogniser does not know every script: what it cannot read counts when the detector is sure and it is long for its
# height. On 400 real frames without text that leaves three.
_READ, _READ_SIGN, _LOOKS, _LONG = 0.65, 0.9, 0.85, 2.5
_SIGN_WIDE = 1.5  # line heights that a single sign is wide at most: W is, a whole scene taken for an A is wider
_SAME_PX = 2.0  # by which corners are off when a line is found again where it was


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """A line of text: where its letters are, and what they say (empty where they could not be read)."""

    corners: np.ndarray
    string: str

    @property
    def width_px(self) -> float:
        """How long the line is."""
        return float(np.linalg.norm(self.corners[1] - self.corners[0]))

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
        det = {"Det.limit_side_len": long_side_px, "Det.unclip_ratio": _TIGHT, "Det.use_dilation": False}
        self._models = RapidOCR(params={**shared, **det})

    def lines(self, picture: np.ndarray, known: Sequence[Line] = ()) -> list[Line]:
        """The lines of text in a picture, in reading order.

        Reading costs as much as finding, so lines that are ``known`` to look as they did before are not read again.
        """
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        found: Any = self._models(bgr, use_det=True, use_rec=False, use_cls=False)
        lines = []
        for box, looks in zip(found.boxes, found.scores, strict=True) if found.boxes is not None else ():
            corners = box.astype(np.float32)
            if old := next((line for line in known if np.abs(line.corners - corners).max() <= _SAME_PX), None):
                lines.append(Line(corners, old.string))
                continue
            string, sure = self._read(bgr, corners)
            line, sign = Line(corners, string), len(string) == 1
            if sure < (_READ_SIGN if sign else _READ) or (sign and line.width_px > _SIGN_WIDE * line.height_px):
                line = Line(corners, "")
            if line.string or (looks >= _LOOKS and line.width_px >= _LONG * line.height_px):
                lines.append(line)
        return lines

    def _read(self, picture: np.ndarray, corners: np.ndarray) -> tuple[str, float]:
        read: Any = self._models(_cut_out(picture, corners), use_det=False, use_rec=True, use_cls=False)
        if not read.txts or not read.txts[0].strip():
            return "", 0.0
        return read.txts[0].strip(), float(read.scores[0])


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
