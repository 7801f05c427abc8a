"""Luma and chroma to blue, green and red, and high dynamic range to standard range, BT.709, 8 bits.

Footage in PQ (HDR10) or HLG looks grey and flat when its code values are taken for ordinary ones. Here they become
light, the light is rolled off to what an ordinary screen shows, and that is coded for such a screen.

Sources: ITU-R BT.2100-2 (both transfer functions; HLG's system gamma of 1.2, which is that of a 1000 cd/m² screen),
BT.2087 (primaries), BT.1886 (the ordinary screen's gamma of 2.4); the roll-off is equation 4 of Reinhard et al.,
"Photographic Tone Reproduction for Digital Images" (2002). We differ in that it reads the largest of R, G and B, which
keeps hues, and in that every film is taken to be mastered for 1000 cd/m²: what files declare is too often wrong. The
weights of red and blue in luma are those of ITU-T H.273, table 4.
"""

from __future__ import annotations

import functools

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, ColorTrc, Interpolation

# Without the flags each kind of processor rounds in its own way, some by up to two codes too dark.
EXACT_AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_PQ, _HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
_PEAK = 1000.0  # cd/m², the brightest that is told apart
_UNIT = 160.0  # cd/m², shown at half of full light; puts BT.2408's white sheet of paper (203 cd/m²) at 80% of the code
_STRIP = 64  # rows worked on at a time, so that they stay in the processor's cache
_CODES = 65536
_LUMA_2020 = np.array([[0.2627, 0.6780, 0.0593]], np.float32)
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
_MATRIX_UNKNOWN = 2
_RED_BLUE = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_RED_BLUE_601 = (0.299, 0.114)  # of all others, and of footage that names none


def is_hdr(frame: VideoFrame) -> bool:
    """Whether the frame is tagged as PQ or HLG."""
    return frame.color_trc in (_PQ, _HLG)


@functools.cache
def to_bgr(matrix: int, full_range: bool) -> np.ndarray:
    """What turns luma, blue and red chroma of 8 bits into blue, green and red, for ``cv2.transform``: 3 4.

    Args:
        matrix: the frame's matrix coefficients by their number in ITU-T H.273.
        full_range: whether code values go from 0 to 255, not from 16 to 235 and 240.
    """
    red, blue = _RED_BLUE.get(matrix, _RED_BLUE_601)
    green = 1.0 - red - blue
    luma, chroma = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    to_red, to_blue = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    weights = np.array(
        [[luma, to_blue, 0.0], [luma, -to_blue * blue / green, -to_red * red / green], [luma, 0.0, to_red]]
    )
    return np.column_stack([weights, -weights @ [0.0 if full_range else 16.0, 128.0, 128.0]])


def to_sdr(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """The stored (not rotated) picture of an HDR frame, scaled, in BT.709 for an ordinary screen: H W 3 BGR uint8."""
    import cv2

    # The chroma of footage that names no matrix can only be BT.2020's.
    matrix = Colorspace.BT2020 if frame.colorspace == _MATRIX_UNKNOWN else None
    coded = frame.reformat(
        width, height, "rgb48le", src_colorspace=matrix, dst_colorspace=matrix, interpolation=EXACT_AREA, threads=1
    ).to_ndarray()
    render = _render_pq if frame.color_trc == _PQ else _render_hlg
    shown = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        light = render(coded[top : top + _STRIP])
        brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
        np.minimum(brightest, _PEAK, out=brightest)
        # The square root spends a table's entries where the eye sees.
        light *= np.take(_gain(), np.sqrt(brightest * ((_CODES - 1) ** 2 / _PEAK)).astype(np.uint16))[..., None]
        rgb = np.clip(cv2.transform(light, _TO_709), 0.0, 1.0)
        shown[top : top + _STRIP] = np.take(_screen(), np.sqrt(rgb * (_CODES - 1.0) ** 2).astype(np.uint16))[..., ::-1]
    return shown


def _render_pq(coded: np.ndarray) -> np.ndarray:
    """16-bit code values, H W 3, to cd/m² on the screen."""
    return np.take(_pq_light(), coded)


def _render_hlg(coded: np.ndarray) -> np.ndarray:
    """16-bit code values, H W 3, to cd/m² on a screen of 1000 cd/m²."""
    import cv2

    scene = np.take(_hlg_scene(), coded)
    scene *= _PEAK * cv2.pow(cv2.transform(scene, _LUMA_2020), 0.2)[..., None]
    return scene


@functools.cache
def _pq_light() -> np.ndarray:
    """Code value (16 bits) to cd/m²."""
    return _from_pq(np.linspace(0, 1, _CODES)).astype(np.float32)


@functools.cache
def _hlg_scene() -> np.ndarray:
    """Code value (16 bits) to scene light, 0..1."""
    code = np.linspace(0, 1, _CODES)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@functools.cache
def _gain() -> np.ndarray:
    """Square root of the brightest channel (0..1 of the peak, 16 bits) to what turns cd/m² into 0..1 of a screen."""
    light = np.linspace(0, 1, _CODES) ** 2 * _PEAK / _UNIT
    return ((1 + light * (_UNIT / _PEAK) ** 2) / (1 + light) / _UNIT).astype(np.float32)


@functools.cache
def _screen() -> np.ndarray:
    """Square root of light (0..1, 16 bits) to the 8-bit code that an ordinary screen shows it for."""
    return np.round(255 * np.linspace(0, 1, _CODES) ** (2 / 2.4)).astype(np.uint8)


def _from_pq(code: np.ndarray) -> np.ndarray:
    m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
    root = np.power(code, 1 / m2)
    return 10000 * np.power(np.maximum(root - c1, 0) / (c2 - c3 * root), 1 / m1)
