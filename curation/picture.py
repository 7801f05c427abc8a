"""One decoded frame as pictures of the size asked for, upright, without converting more of it than is needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from curation.colour import EXACT_AREA, is_hdr, to_bgr, to_sdr

_PLANAR = {"yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "nv12"}  # luma of 8 bits by itself
_FULL_RANGE = np.clip((np.arange(256) - 16) * 255 / 219 + 0.5, 0, 255).astype(np.uint8)
_FULL_CHROMA = np.clip((np.arange(256) - 128) * 255 / 224 + 128.5, 0, 255).astype(np.uint8)
_FULL = np.stack([_FULL_RANGE, _FULL_CHROMA, _FULL_CHROMA], axis=1)[None]  # of luma, red and blue
_WHOLE_CHROMA = EXACT_AREA | Interpolation.FULL_CHR_H_INT  # else colours come out up to three levels too dark
_SKETCH = Interpolation.FAST_BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@dataclasses.dataclass(slots=True)
class Frame:
    """One decoded frame. ``picture`` gives its pixels, upright."""

    index: int  # counted from where decoding began
    t_s: float
    raw: VideoFrame
    rotation: int  # degrees, counter-clockwise, that bring the stored picture upright: 0, 90, 180 or 270
    _scalers: dict[Any, VideoReformatter]
    _pictures: dict[tuple[int, int], np.ndarray] = dataclasses.field(default_factory=dict)  # more than one may ask

    def picture(self, width: int, height: int) -> np.ndarray:
        """The upright picture, H W 3 BGR uint8, scaled to the displayed size given; HDR is tone-mapped."""
        if (width, height) not in self._pictures:
            stored = self._scaled(*self._stored(width, height))
            self._pictures[width, height] = upright(stored, self.rotation)
        return self._pictures[width, height]

    def _scaled(self, width: int, height: int) -> np.ndarray:
        if is_hdr(self.raw):
            return to_sdr(self.raw, width, height)
        if self.raw.interlaced_frame:  # one field alone: two were taken at different times
            field = self._bgr(self.raw.width, self.raw.height)[::2]
            return np.asarray(cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA))
        return self._bgr(width, height)

    def _bgr(self, width: int, height: int) -> np.ndarray:
        """The stored picture, scaled. FFmpeg scales; its way from luma and chroma to colours is slow or too dark."""
        form = self.raw.format
        if form.is_rgb or form.has_palette or len(form.components) < 3:
            return self._convert(width, height, "bgr24", _WHOLE_CHROMA).to_ndarray()
        full = self._is_full()
        places = self._convert(
            width, height, "yuv420p", EXACT_AREA, ColorRange.JPEG if full else ColorRange.MPEG
        ).planes
        luma, *chroma = (pixels_of(place) for place in places)
        stored = cv2.merge([luma, *(cv2.resize(plane, (width, height)) for plane in chroma)])
        return np.asarray(cv2.transform(stored, to_bgr(self.raw.colorspace, full)))

    def grey(self, width: int, height: int) -> np.ndarray:
        """The upright picture's luma, H W uint8 (0 black, 255 white), scaled to the displayed size given."""
        stored_width, stored_height = self._stored(width, height)
        every = self.raw.height // (2 * stored_height)  # two rows for each one of the result are enough
        every -= every % 2 if self.raw.interlaced_frame else 0  # rows of one field
        planar = self.raw.format.name in _PLANAR
        if planar and (stored_width, stored_height) == (self.raw.width, self.raw.height):
            stored = pixels_of(self.raw.planes[0])  # a view: the frame's memory is used again
            return upright(stored.copy() if self._is_full() else cv2.LUT(stored, _FULL_RANGE), self.rotation)
        if every < 2 or not planar:
            return np.asarray(cv2.cvtColor(self.picture(width, height), cv2.COLOR_BGR2GRAY))
        luma = pixels_of(self.raw.planes[0])
        scaled = self._scaler("grey", stored_width, stored_height).reformat(
            VideoFrame.from_numpy_buffer(luma[every // 2 :: every], format="gray"),
            width=stored_width,
            height=stored_height,
            interpolation=EXACT_AREA,
            threads=1,
        )
        stored = scaled.to_ndarray()
        return upright(stored if self._is_full() else cv2.LUT(stored, _FULL_RANGE), self.rotation)

    def sketch(self, width: int, height: int) -> np.ndarray:
        """The stored (not upright) picture, H W 3 BGR uint8, made from a few of its pixels: coarse, but cheap."""
        if self.raw.format.name not in _PLANAR - {"nv12"}:
            return self._coarse(width, height)
        luma, blue, red = self.raw.planes
        size = (2 * width, 2 * height)
        samples = [cv2.resize(pixels_of(p), size, interpolation=cv2.INTER_NEAREST) for p in (luma, red, blue)]
        stored = cv2.resize(cv2.merge(samples), (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.cvtColor(stored if self._is_full() else cv2.LUT(stored, _FULL), cv2.COLOR_YCrCb2BGR))

    def _coarse(self, width: int, height: int) -> np.ndarray:
        coarse = self._scaler("sketch").reformat(
            self.raw, width=2 * width, height=2 * height, format="bgr24", interpolation=_SKETCH, threads=1
        )
        return np.asarray(cv2.resize(coarse.to_ndarray(), (width, height), interpolation=cv2.INTER_AREA))

    def _is_full(self) -> bool:
        return self.raw.color_range == ColorRange.JPEG or self.raw.format.name.startswith("yuvj")

    def _stored(self, width: int, height: int) -> tuple[int, int]:
        """The size that, turned upright, is the displayed size given."""
        return (height, width) if self.rotation in (90, 270) else (width, height)

    def _convert(
        self, width: int, height: int, pixel_format: str, interpolation: Interpolation, levels: ColorRange | None = None
    ) -> VideoFrame:
        """The stored frame, scaled and converted."""
        return self._scaler(width, height, pixel_format).reformat(
            self.raw,
            width=width,
            height=height,
            format=pixel_format,
            interpolation=interpolation,
            dst_color_range=levels,
            threads=1,
        )

    def _scaler(self, *key: Any) -> VideoReformatter:
        """A scaler keeps what it has prepared for one kind of picture, so each kind has its own."""
        if key not in self._scalers:
            self._scalers[key] = VideoReformatter()
        return self._scalers[key]


def upright(stored: np.ndarray, rotation: int) -> np.ndarray:
    """A stored picture turned by ``rotation`` degrees, counter-clockwise."""
    return np.ascontiguousarray(np.rot90(stored, rotation // 90)) if rotation else stored


def pixels_of(place: VideoPlane) -> np.ndarray:
    """A plane of 8 bits, H W, without copying it."""
    pixels: np.ndarray = np.frombuffer(place, np.uint8)  # type: ignore[call-overload]
    return pixels.reshape(-1, place.line_size)[: place.height, : place.width]
