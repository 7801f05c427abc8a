"""How much of the picture is text, how much of that was laid over it, and what it says."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from annotated_types import Ge

from curation.frames import Frames
from curation.stage import Filter, operational
from filters.overlay import tracks
from filters.reading import Line, Reader

_SIDE_PX = 640  # as large as the contact sheet has them
_LOOK_S = 1.1  # a second, and what frames lie off the time grid
_STROKE = 25  # grey levels by which a stroke stands out
_CLOSE = 0.5  # share of a spot of 16 x 8 pixels under strokes; real frames with text have 0.62 and more
_SPOT = 6  # grey levels, mean over a spot of 8 x 8 pixels


@dataclasses.dataclass(kw_only=True)
class Text(Filter):
    """Lines of text on the contact sheet.

    Writes:
        text_area: share of the picture covered by lines of text (the union of the boxes around their letters), 0..1,
            mean over frames.
        overlay_text_area: the same for text that was laid over the picture (subtitles, tickers, logos, titles), apart
            from text of the scene. Unknown when there is text and nothing moves that could tell: a still picture, a
            single frame. Beside text that was told, text that could not be told counts as text of the scene.
        text: the different strings that were read, in reading order, frame after frame.

    Lines are found and read by PP-OCR through rapidocr (https://github.com/RapidAI/RapidOCR), which brings models that
    read Latin letters, Chinese and Japanese; text of other scripts is found, and not read.

    Args:
        precheck: read no frame that repeats the one before or has no strokes in it, nor any between two frames a
            second apart that hold no text: what is shown for a second or longer is not missed.
        threads: what the models may use.
    """

    precheck: bool = True
    threads: Annotated[int, Ge(1)] = operational(1)

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 2
    extra: ClassVar[str] = "text"
    packages: ClassVar[tuple[str, ...]] = ("rapidocr", "onnxruntime")
    frames: ClassVar[Frames] = Frames.sheet(long_side_px=_SIDE_PX)
    writes: ClassVar[pa.Schema] = pa.schema(
        [("text_area", pa.float32()), ("overlay_text_area", pa.float32()), ("text", pa.list_(pa.string()))]
    )

    def setup(self) -> None:
        self._reader = Reader(threads=self.threads, long_side_px=_SIDE_PX)

    def score(self, frames: np.ndarray, times: np.ndarray) -> dict[str, Any]:
        if len(frames) == 0:
            return dict.fromkeys(self.writes.names)
        grey = to_grey(frames)
        found = self.find(frames, grey, times)
        strings = dict.fromkeys(line.string for lines in found for line in lines if line.string)
        return {
            "text_area": float(np.mean([covered(lines, grey.shape[1:]) for lines in found])),
            "overlay_text_area": _overlay_area(grey, found),
            "text": list(strings),
        }

    def find(self, frames: np.ndarray, grey: np.ndarray, times: np.ndarray) -> list[list[Line]]:
        """The lines of each frame, of pictures T H W 3 that are T H W in grey."""
        if not self.precheck:
            return [self._reader.lines(frame) for frame in frames]
        first = _repeats(grey)
        read: dict[int, list[Line]] = {}

        def look(i: int) -> list[Line]:
            i = first[i]
            if i not in read:
                before = max((k for k in read if k < i), default=i)
                known = [line for line in read.get(before, []) if same(*_cut(line, grey[before], grey[i]))]
                read[i] = self._reader.lines(frames[i], known) if has_strokes(grey[i]) else []
            return read[i]

        looks = _at_least_every(times, _LOOK_S)
        for before, after in itertools.pairwise(looks):
            if look(before) or look(after):
                for i in range(before + 1, after):
                    look(i)
        look(looks[-1])
        return [read.get(first[i], []) for i in range(len(frames))]


def to_grey(frames: np.ndarray) -> np.ndarray:
    """T H W of T H W 3."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def _repeats(grey: np.ndarray) -> list[int]:
    """For each picture of T H W the first one that it repeats, or itself."""
    first = [0]
    for i in range(1, len(grey)):
        first.append(first[-1] if same(grey[first[-1]], grey[i]) else i)
    return first


def _cut(line: Line, *pictures: np.ndarray) -> list[np.ndarray]:
    """The part of each picture H W in which the line stands."""
    (left, top), (right, bottom) = line.corners.min(axis=0).astype(int), line.corners.max(axis=0).astype(int)
    return [picture[top : bottom + 1, left : right + 1] for picture in pictures]


def _at_least_every(times: np.ndarray, step_s: float) -> list[int]:
    """Indices of the first time, the last, and as few between as leave no gap above ``step_s`` where none need be."""
    chosen = [0]
    for i in range(1, len(times)):
        if i == len(times) - 1 or times[i + 1] - times[chosen[-1]] > step_s + 1e-6:
            chosen.append(i)
    return chosen


def covered(lines: list[Line], size: tuple[int, ...]) -> float:
    """Share of a picture of ``size`` (height, width) under any of the lines, 0..1."""
    mask = np.zeros(size, np.uint8)
    for line in lines:
        cv2.fillPoly(mask, [np.round(line.corners).astype(np.int32)], 1)
    return cv2.countNonZero(mask) / mask.size


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two grey pictures H W differ nowhere by more than compression does, even in a spot of a few letters."""
    size = max(1, one.shape[1] // 8), max(1, one.shape[0] // 8)
    spots = cv2.resize(cv2.absdiff(one, other), size, interpolation=cv2.INTER_AREA)
    return int(spots.max()) <= _SPOT


def has_strokes(grey: np.ndarray) -> bool:
    """Whether thin strokes, darker or lighter than what is around them, stand close together anywhere in H W."""
    kernel = np.ones((9, 9), np.uint8)
    light, dark = (cv2.morphologyEx(grey, kind, kernel) for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))
    strokes = (cv2.max(light, dark) > _STROKE).astype(np.float32)
    return float(cv2.boxFilter(strokes, -1, (16, 8)).max()) >= _CLOSE


def _overlay_area(grey: np.ndarray, found: list[list[Line]]) -> float | None:
    """Mean share of the pictures T H W that is covered by text laid over them; None if nothing tells."""
    followed = tracks(grey, found)
    if followed and not any(track.votes for track in followed):
        return None
    laid_over: list[list[Line]] = [[] for _ in found]
    for track in followed:
        if track.votes > 0:
            for i, line in track.lines:
                laid_over[i].append(line)
    return float(np.mean([covered(lines, grey.shape[1:]) for lines in laid_over]))
