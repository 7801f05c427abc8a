"""Packets are copied only where the copy shows exactly the clip; whatever stands against it is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest

from curation.plan import ShardSettings
from curation.video import Video
from shards.encode import Cut, cut_clip
from shards.remux import checksum
from tests.shards.films import FILMS, Film, numbers, span, times_of
from tests.shards.test_picture import patches

REMUX = ShardSettings(video="remux")
# Without B-frames or scene cuts there is a keyframe every 12 frames, and a clip may end anywhere.
PLAIN = Film(options={"g": "12", "bf": "0", "x264-params": "scenecut=0"})
PLAIN_HEVC = Film(codec="libx265", options={"x265-params": "keyint=12:min-keyint=12:bframes=0:log-level=0"})
CLOSED = Film(options={"g": "12", "bf": "2", "x264-params": "scenecut=0:b-adapt=0"})


def packets(video: Path | bytes) -> list[bytes]:
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def pictures(source: Path | str, start: int = 0, end: int | None = None) -> list[int]:
    with Video(source) as video:
        return [checksum(frame.raw) for frame in video.frames()][start:end]


def cut(source: Path, start: int, end: int, settings: ShardSettings = REMUX) -> Cut:
    return cut_clip(str(source), span(times_of(source), start, end), settings)


@pytest.mark.parametrize(
    ("name", "film", "start", "end"),
    [
        ("plain", PLAIN, 12, 29),
        ("plain", PLAIN, 0, 1),
        ("b_frames", CLOSED, 12, 36),
        ("matroska", Film(suffix=".mkv", options=CLOSED.options), 12, 36),
        ("rotated", Film(rotation=90, options=PLAIN.options), 12, 29),
        ("upside_down", Film(rotation=180, options=PLAIN.options), 24, 29),
        ("vp9", FILMS["vp9"], 12, 24),
        ("av1", FILMS["av1"], 12, 24),
        ("hevc", PLAIN_HEVC, 24, 41),
    ],
)
def test_a_clip_from_keyframe_on_is_copied_bit_for_bit(
    name: str, film: Film, start: int, end: int, tmp_path: Path
) -> None:
    source = film.write(tmp_path / f"{name}{film.suffix}")
    clip = cut(source, start, end)
    assert (clip.how, clip.why) == ("remuxed", "")
    assert numbers(clip.mp4) == list(range(start, end))
    assert set(packets(clip.mp4)) <= set(packets(source))
    (tmp_path / "clip.mp4").write_bytes(clip.mp4)
    assert pictures(tmp_path / "clip.mp4") == pictures(source, start, end)
    times = times_of(source)
    wanted = [t - times[start] for t in times[start : end + 1]]
    assert times_of(tmp_path / "clip.mp4") == pytest.approx(wanted, abs=2e-3)  # Matroska counts milliseconds
    with Video(source) as before, Video(tmp_path / "clip.mp4") as after:
        next(before.frames())
        next(after.frames())
        assert (after.width, after.height, after.rotation) == (before.width, before.height, before.rotation)
        assert (after.width, after.height) == (clip.facts["width"], clip.facts["height"])
        assert after.codec == clip.facts["codec"] == before.codec
    assert clip.mp4 == cut(source, start, end).mp4


@pytest.mark.parametrize(
    ("film", "start", "end", "settings", "why"),
    [
        (PLAIN, 5, 17, {}, "does not start on a keyframe"),
        (CLOSED, 12, 26, {}, "frames outside of the clip are needed"),
        (FILMS["open_gop"], 12, 36, {}, ""),  # whatever is wrong with it, below
        (FILMS["transport_stream"], 0, 12, {}, "are not copied into MP4"),
        (FILMS["mpeg2"], 0, 12, {}, "mpeg2video is not copied into MP4"),
        (PLAIN, 12, 24, {"short_side_px": 32}, "384x64 is scaled down to 192x32"),
    ],
)
def test_other_clips_are_encoded_and_say_why(
    film: Film, start: int, end: int, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    source = film.write(tmp_path / f"source{film.suffix}")
    clip = cut(source, start, end, ShardSettings(video="remux", **settings))
    assert clip.how == "encoded"
    assert clip.why
    assert why in clip.why
    assert numbers(clip.mp4) == list(range(start, end))


def test_hdr_is_tone_mapped_and_not_copied(tmp_path: Path) -> None:
    source = patches(tmp_path / "hlg.mp4", (9, 18, 9), codec="libx265", pix_fmt="yuv420p10le", value=(700, 512, 512))
    clip = cut(source, 0, 12)
    assert (clip.how, clip.why) == ("encoded", "HDR is tone-mapped")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "end"), [("portrait_4k60_rot90.mp4", 18), ("dog_whip_pan_vfr_rot180.mp4", 25), ("testsrc_av1.mkv", 30)]
)
def test_real_films_are_copied_upright_and_whole(name: str, end: int, real_videos: Path, tmp_path: Path) -> None:
    clip = cut(real_videos / name, 0, end)
    assert clip.how == "remuxed"
    (tmp_path / "clip.mp4").write_bytes(clip.mp4)
    assert pictures(tmp_path / "clip.mp4") == pictures(real_videos / name, 0, end)
