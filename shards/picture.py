"""What frames become before they are encoded: one size, upright, progressive, 8-bit 4:2:0, colour tags that are true.

Standard-range footage keeps its pixels' meaning: primaries, transfer, matrix and range are those of the source and
tagged as such, and what the source does not say stays unsaid. RGB becomes BT.709; high dynamic range is tone-mapped to
it. Alpha is ignored, as it was when the clip was scored and captioned.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

import numpy as np
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from curation.colour import EXACT_AREA, is_hdr, to_sdr
from curation.isolate import alive
from curation.picture import Frame, pixels_of
from curation.video import Video

_SAME_TIME_S = 1e-6
_UNKNOWN = 2
_BT709 = 1
# What H.264, HEVC and AV1 can all say; other numbers are reserved, or need pixels that are not YUV.
_PRIMARIES = frozenset({1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 22})
_TRANSFERS = frozenset({1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18})
_MATRICES = frozenset({1, 4, 5, 6, 7, 9})


class Span:
    """The frames of a video with start_s <= t < end_s.

    Attributes:
        num_frames: how many have passed.
        aspect: width of the video's stored pixels, in heights.
        origin_s: the container's time of presentation second 0.
    """

    def __init__(self, video: Video, start_s: float, end_s: float) -> None:
        self._video, self._start_s, self._end_s = video, start_s, end_s
        self.num_frames, self.aspect, self.origin_s = 0, Fraction(1), 0.0

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._video.frames(self._start_s):
            alive()
            if frame.index == 0:
                self.aspect = self._video.aspect
            if frame.t_s >= self._end_s - _SAME_TIME_S:
                break
            if frame.t_s >= self._start_s - _SAME_TIME_S:
                if self.num_frames == 0 and frame.raw.pts is not None and frame.raw.time_base:
                    self.origin_s = float(frame.raw.pts * frame.raw.time_base) - frame.t_s
                self.num_frames += 1
                yield frame


def output_size(width: int, height: int, short_side_px: int | None) -> tuple[int, int]:
    """The encoded size: scaled down so that the short side is ``short_side_px``, and even, as 4:2:0 demands."""
    scale = min(1.0, short_side_px / min(width, height)) if short_side_px else 1.0
    return _even(width * scale), _even(height * scale)


def _even(side: float) -> int:
    return max(2, 2 * round(side / 2))


def displayed_size(frame: Frame, aspect: Fraction) -> tuple[int, int]:
    """(width, height) of a frame when shown upright with square pixels."""
    width, height = max(1, round(frame.raw.width * aspect)), frame.raw.height
    return (height, width) if frame.rotation in (90, 270) else (width, height)


@dataclasses.dataclass(frozen=True)
class Tags:
    """What the numbers in a picture mean, in the code points of ITU-T H.273 (2: not said)."""

    primaries: int = _UNKNOWN
    transfer: int = _UNKNOWN
    matrix: int = _UNKNOWN
    full_range: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Tags:
        """The tags that the encoded clip gets for a source frame."""
        if is_hdr(frame):
            return cls(_BT709, _BT709, _BT709)
        primaries = frame.color_primaries if frame.color_primaries in _PRIMARIES else _UNKNOWN
        transfer = frame.color_trc if frame.color_trc in _TRANSFERS else _UNKNOWN
        if frame.format.is_rgb or frame.format.has_palette:
            return cls(primaries, transfer, _BT709)
        matrix = frame.colorspace if frame.colorspace in _MATRICES else _UNKNOWN
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        return cls(primaries, transfer, matrix, full)

    def write(self, target: VideoFrame | VideoCodecContext) -> None:
        target.color_primaries, target.color_trc, target.colorspace = self.primaries, self.transfer, self.matrix
        target.color_range = ColorRange.JPEG if self.full_range else ColorRange.MPEG


class Painter:
    """Makes the pictures of one clip alike: all get the size and the tags of the first.

    A source whose resolution or colour changes on the way is scaled and tagged by its first frame in the clip.

    Args:
        first: the clip's first frame.
        aspect: width of a stored pixel, in heights.
        short_side_px: scale down to this.
        bars: what to cut off at the sides, as shares of width and height (left, top, right, bottom).
    """

    def __init__(
        self, first: Frame, aspect: Fraction, short_side_px: int | None, bars: Mapping[str, float] | None = None
    ) -> None:
        whole = displayed_size(first, aspect)
        self._left = self._top = right = bottom = 0
        if bars:
            whole = _even(whole[0]), _even(whole[1])
            self._left, right = (2 * math.ceil(whole[0] * bars[side] / 2) for side in ("left", "right"))
            self._top, bottom = (2 * math.ceil(whole[1] * bars[side] / 2) for side in ("top", "bottom"))
        inside = whole[0] - self._left - right, whole[1] - self._top - bottom
        self.width, self.height = output_size(*inside, short_side_px)
        # Bars are cut off before the picture is scaled, so that they do not bleed into it.
        self._whole, self._inside = (whole, inside) if bars else ((self.width, self.height),) * 2
        self.tags = Tags.of(first.raw)
        self._scaler, self._second = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: Frame) -> VideoFrame:
        """The frame as it is encoded: a new picture without a time."""
        turned = frame.rotation in (90, 270)
        width, height = self._whole[::-1] if turned else self._whole
        picture = self._cut_out(self._stored(frame.raw, width, height), frame.rotation)
        picture = self._second.reformat(  # does nothing where the size is right
            picture, width=self.width, height=self.height, interpolation=EXACT_AREA, threads=1
        )
        self.tags.write(picture)
        picture.pict_type = PictureType.NONE  # the source's would be taken for an order
        return picture

    def _stored(self, raw: VideoFrame, width: int, height: int) -> VideoFrame:
        source, matrix = raw, None
        if is_hdr(raw):
            source = VideoFrame.from_ndarray(to_sdr(raw, width, height), format="bgr24")
        if source.format.is_rgb or source.format.has_palette:
            matrix = Colorspace.ITU709
        full_range = ColorRange.JPEG if self.tags.full_range else ColorRange.MPEG
        return self._scaler.reformat(
            source,
            width=width,
            height=height,
            format="yuv420p",
            dst_colorspace=matrix,
            dst_color_range=full_range,
            src_color_range=ColorRange.JPEG if Tags.of(source).full_range else None,
            interpolation=EXACT_AREA,
            threads=1,
        )

    def _cut_out(self, stored: VideoFrame, rotation: int) -> VideoFrame:
        """What lies within the bars, turned counter-clockwise by ``rotation`` degrees, as a copy of its own."""
        picture = VideoFrame(*self._inside)
        for i, plane in enumerate(picture.planes):
            left, top = (self._left, self._top) if i == 0 else (self._left // 2, self._top // 2)
            upright = np.rot90(pixels_of(stored.planes[i]), rotation // 90)
            padded = np.zeros((plane.height, plane.line_size), np.uint8)
            padded[:, : plane.width] = upright[top : top + plane.height, left : left + plane.width]
            plane.update(padded.tobytes())
        return picture


def progressive(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Frames whose fields were taken one after the other become whole pictures; the others pass.

    Combing teaches a model to comb. One frame stays one frame, at its time: bwdif keeps the first field's moment.
    """
    comb: _Bwdif | None = None
    for frame in frames:
        if comb is not None and not comb.fits(frame.raw):
            yield from comb.drain()
            comb = None
        if comb is None and frame.raw.interlaced_frame:
            comb = _Bwdif(frame.raw)
        if comb is None:
            yield frame
        else:
            yield from comb(frame)
    if comb is not None:
        yield from comb.drain()


class _Bwdif:
    """FFmpeg's deinterlacer, for frames of one kind. It looks at a frame's neighbours, so it gives them back late."""

    def __init__(self, raw: VideoFrame) -> None:
        self._kind = _kind(raw)
        self._waiting: collections.deque[Frame] = collections.deque()
        self._graph = Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=raw.width, height=raw.height, format=raw.format, time_base=raw.time_base or Fraction(1, 90000)
        )
        parts = [self._graph.add("bwdif", "mode=send_frame:deint=interlaced"), self._graph.add("buffersink")]
        self._graph.link_nodes(source, *parts).configure()

    def fits(self, raw: VideoFrame) -> bool:
        return _kind(raw) == self._kind

    def __call__(self, frame: Frame) -> Iterator[Frame]:
        self._waiting.append(frame)
        self._graph.vpush(frame.raw)
        yield from self._ready()

    def drain(self) -> Iterator[Frame]:
        self._graph.vpush(None)
        yield from self._ready()

    def _ready(self) -> Iterator[Frame]:
        while self._waiting:
            try:
                raw = self._graph.vpull()
            except (BlockingIOError, EOFError):
                return
            yield dataclasses.replace(self._waiting.popleft(), raw=raw)


def _kind(raw: VideoFrame) -> tuple[int, int, str]:
    return raw.width, raw.height, raw.format.name
