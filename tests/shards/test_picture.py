"""Pixels and colour tags of a clip mean what those of its source meant."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.colour import is_hdr, to_sdr
from curation.plan import ShardSettings
from shards.encode import cut_clip
from tests.curation.test_video import patch_display_matrix
from tests.shards.films import combing, greys, interlaced, span, times_of

BT709 = (1, 1, 1)  # primaries, transfer, matrix
BT601 = (6, 6, 6)
UNKNOWN = (2, 2, 2)
ROW = {"start_s": 0.0, "end_s": 0.5, "num_frames": 12, "fps": 24.0}


def patches(
    path: Path,
    tags: tuple[int, int, int],
    *,
    full_range: bool = False,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    value: tuple[int, int, int] = (120, 90, 200),
) -> Path:
    """Twelve frames of one colour, given as the numbers in their planes."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=24, options={"x265-params": "log-level=0"} if "265" in codec else {})
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = tags
        context.color_range = 2 if full_range else 1
        for _ in range(12):
            frame = av.VideoFrame(128, 96, pix_fmt)
            for plane, number in zip(frame.planes, value, strict=False):
                kind = np.uint16 if "10" in pix_fmt else np.uint8
                plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, number, kind).tobytes())
            frame.color_range = context.color_range
            frame.color_primaries, frame.color_trc, frame.colorspace = tags
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def first(video: bytes | Path) -> av.VideoFrame:
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
        return next(container.decode(video=0))


def tags_of(frame: av.VideoFrame) -> tuple[int, int, int]:
    return frame.color_primaries, frame.color_trc, frame.colorspace


def middle(frame: av.VideoFrame) -> list[int]:
    """R, G and B in the middle of the picture, as a player shows it."""
    pixel: list[int] = frame.to_ndarray(format="rgb24")[frame.height // 2, frame.width // 2].tolist()
    return pixel


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("tags", [BT709, BT601, UNKNOWN], ids=["bt709", "bt601", "untagged"])
def test_tags_are_carried_and_pixels_match_them(
    tags: tuple[int, int, int], full_range: bool, codec: Any, tmp_path: Path
) -> None:
    source = patches(tmp_path / "source.mp4", tags, full_range=full_range)
    cut = cut_clip(str(source), ROW, ShardSettings(codec=codec, short_side_px=64))
    with av.open(io.BytesIO(cut.mp4)) as container:  # VP9's own header has one number for all three; MP4 has each
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == tags
    clip = first(cut.mp4)
    assert clip.colorspace == tags[2]
    assert (clip.color_range == 2) == full_range
    assert np.abs(np.subtract(middle(clip), middle(first(source)))).max() <= 3


def test_ten_bits_become_eight_of_the_same_colour(tmp_path: Path) -> None:
    source = patches(
        tmp_path / "source.mp4", BT709, codec="libx265", pix_fmt="yuv420p10le", value=(120 * 4, 90 * 4, 200 * 4)
    )
    clip = first(cut_clip(str(source), ROW, ShardSettings()).mp4)
    assert clip.format.name == "yuv420p"
    assert tags_of(clip) == BT709
    assert np.abs(np.subtract(middle(clip), middle(first(source)))).max() <= 3


def test_rgb_becomes_bt709(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "source.mov"), "w") as out:
        stream: Any = out.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb24"
        for _ in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), (230, 40, 90), np.uint8))))
        out.mux(stream.encode(None))
    clip = first(cut_clip(str(tmp_path / "source.mov"), ROW, ShardSettings()).mp4)
    assert clip.colorspace == 1
    assert np.abs(np.subtract(middle(clip), (230, 40, 90))).max() <= 3


def test_alpha_is_ignored(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "source.mov"), "w") as out:
        stream: Any = out.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "rgba"
        for _ in range(12):
            picture = np.full((96, 128, 4), (230, 40, 90, 20), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        out.mux(stream.encode(None))
    clip = first(cut_clip(str(tmp_path / "source.mov"), ROW, ShardSettings()).mp4)
    assert np.abs(np.subtract(middle(clip), (230, 40, 90))).max() <= 3


def code_of(level: float) -> int:
    """The luma of a 10-bit limited-range signal at ``level``, 0..1."""
    return round(64 + 876 * level)


@pytest.mark.parametrize(
    ("transfer", "level", "shown"),
    [
        (16, 0.0, 0),
        (16, 0.5807, 202),  # PQ: diffuse white, 203 cd/m², at about 80% of the code
        (16, 0.7518, 255),  # 1000 cd/m²
        (16, 1.0, 255),
        (18, 0.0, 0),
        (18, 0.75, 202),  # HLG: the same white
        (18, 1.0, 255),
    ],
)
def test_hdr_greys_are_shown_as_documented(transfer: int, level: float, shown: int, tmp_path: Path) -> None:
    source = patches(
        tmp_path / "source.mp4",
        (9, transfer, 9),
        codec="libx265",
        pix_fmt="yuv420p10le",
        value=(code_of(level), 512, 512),
    )
    assert is_hdr(first(source))
    assert to_sdr(first(source), 64, 48)[24, 32].tolist() == pytest.approx([shown] * 3, abs=3)
    clip = first(cut_clip(str(source), ROW, ShardSettings()).mp4)
    assert tags_of(clip) == BT709
    assert middle(clip) == pytest.approx([shown] * 3, abs=4)


def test_brighter_stays_brighter_and_hues_stay(tmp_path: Path) -> None:
    greys = []
    for level in np.linspace(0.05, 0.95, 10):
        source = patches(
            tmp_path / "grey.mp4", (9, 18, 9), codec="libx265", pix_fmt="yuv420p10le", value=(code_of(level), 512, 512)
        )
        greys.append(int(to_sdr(first(source), 16, 12)[6, 8, 1]))
    assert greys == sorted(set(greys))
    source = patches(
        tmp_path / "red.mp4", (9, 18, 9), codec="libx265", pix_fmt="yuv420p10le", value=(code_of(0.4), 460, 680)
    )
    blue, green, red = to_sdr(first(source), 16, 12)[6, 8].tolist()
    assert red > green + 60
    assert red > blue + 60


def test_a_real_chart_in_hlg_looks_like_one(real_videos: Path) -> None:
    source = real_videos / "colour_chart_hlg_hevc10.mp4"
    times = times_of(source)
    cut = cut_clip(str(source), span(times, 0, 9), ShardSettings(short_side_px=540))
    picture = first(cut.mp4).to_ndarray(format="rgb24")
    assert 100 < picture.mean() < 180
    assert np.percentile(picture, 1) < 40  # blacks are black
    assert np.percentile(picture, 99) > 240
    red, yellow, cyan = (picture[y, x].astype(int) for y, x in ((325, 425), (325, 535), (325, 755)))
    assert red[0] - red[1] > 120
    assert min(yellow[:2]) - yellow[2] > 150
    assert cyan[2] - cyan[0] > 150


def test_interlaced_pictures_are_made_whole(tmp_path: Path) -> None:
    source = interlaced(tmp_path / "fields.mp4")
    assert first(source).interlaced_frame
    times = times_of(source)
    cut = cut_clip(str(source), span(times, 3, 18), ShardSettings())
    whole = [combing(picture) for picture in greys(io.BytesIO(cut.mp4))]
    assert len(whole) == 15
    assert max(map(combing, greys(source))) > 3
    assert max(whole) < 0.5
    assert not first(cut.mp4).interlaced_frame


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize(("short_side_px", "size"), [(None, (280, 158)), (80, (142, 80))])
def test_bars_are_cut_off(rotation: int, short_side_px: int | None, size: tuple[int, int], tmp_path: Path) -> None:
    """Bars of 40 pixels on the left, 41 above and 40 below (41 is not even: a line of the picture goes with it)."""
    shown = np.full((240, 320, 3), 255, np.uint8)
    shown[41:200, 40:] = 120
    source = tmp_path / "source.mp4"
    with av.open(str(source), "w") as out:
        stream: Any = out.add_stream("libx264", rate=24, options={"crf": "1"})
        stored = np.ascontiguousarray(np.rot90(shown, -rotation // 90))
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt = "yuv420p"
        for _ in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(stored)))
        out.mux(stream.encode(None))
    if rotation:
        patch_display_matrix(source, rotation)
    bars = {"left": 40 / 320, "top": 41 / 240, "right": 0.0, "bottom": 40 / 240}
    settings = ShardSettings(crop_bars=True, short_side_px=short_side_px, crf=1)
    cut = cut_clip(str(source), {**ROW, "letterbox": bars}, settings)
    picture = first(cut.mp4)
    assert (cut.facts["width"], cut.facts["height"]) == (picture.width, picture.height) == size
    assert np.abs(picture.to_ndarray(format="rgb24").astype(int) - 120).max() < 12
    assert cut_clip(str(source), {**ROW, "letterbox": None}, settings).facts["width"] in (320, 106)
