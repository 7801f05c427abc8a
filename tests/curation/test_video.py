"""Decoding in presentation time, on real files of many kinds and on damaged ones."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from curation.errors import VideoError
from curation.picture import Frame
from curation.video import Video
from tests.mutants import FAST, KINDS, Kind, make
from tests.shards.films import combing, greys, interlaced


def indexed(folder: Path) -> list[dict[str, str]]:
    with (folder / "INDEX.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["frames"]]


@pytest.mark.slow
def test_real_files_have_the_frames_size_and_duration_of_their_index(real_videos: Path) -> None:
    """Duration is that of the shown frames; the index gives the container's, which counts longer audio and delays."""
    wrong = []
    for row in indexed(real_videos):
        turned = abs(int(row["rotation"] or 0)) % 180 == 90
        width, height = int(row["width"]), int(row["height"])
        if ":" in row["sar"]:
            across, down = map(int, row["sar"].split(":"))
            width = round(width * across / down)
        if turned:
            width, height = height, width
        with Video(real_videos / row["file"]) as video:
            times = [frame.t_s for frame in video.frames()]
            ok = len(times) == int(row["frames"]) and (video.width, video.height) == (width, height)
            ok &= times[0] == 0 and bool(np.all(np.diff(times) > 0))
            ok &= video.codec == row["codec"]
            delayed = row["file"] == "psd_delayed_start.mp4"  # an empty edit of 1.075 s comes first
            declared_s = float(row["duration_s"] or video.end_s) - (1.075 if delayed else 0)
            longest_s = 3.6 if "multistream" in row["file"] else 0.14  # other streams last longer
            shortest_s = max(np.diff(times), default=0) + 0.001
            ok &= -longest_s <= video.end_s - declared_s <= shortest_s
            if not ok:
                wrong.append((row["file"], len(times), video.width, video.height, video.end_s, declared_s))
    assert wrong == []


@pytest.mark.parametrize(
    "name",
    [
        "bbb_tree_vp9.webm",
        "bbb_tree_hevc.mp4",
        "testsrc_var_fps.mp4",
        "psd_delayed_start.mp4",
        "talking_man.flv",
        "cars_raw_annexb.h264",
        "asteroid_mpeg1.mpg",
        "asl_again.mkv",
        "talking_man_av1.mp4",
        "lego_static_mpeg2.mxf",
    ],
)
def test_a_frame_has_the_same_time_and_pixels_after_a_seek(real_videos: Path, name: str) -> None:
    with Video(real_videos / name) as video:
        whole = {frame.t_s: frame.picture(32, 18).tobytes() for frame in video.frames()}
    start_s = sorted(whole)[len(whole) * 2 // 3]
    with Video(real_videos / name) as video:
        sought = {frame.t_s: frame.picture(32, 18).tobytes() for frame in video.frames(start_s)}
    assert min(sought) <= start_s
    assert {t: p for t, p in sought.items() if t >= start_s} == {t: p for t, p in whole.items() if t >= start_s}


@pytest.mark.parametrize("name", ["h264.mkv", "h264.ts", "mpeg2.ts", "mpeg4.avi", "mjpeg.avi", "h264.flv"])
def test_seeking_reads_from_a_keyframe_near_and_gives_the_same_frames(name: str, tmp_path: Path) -> None:
    kind = {known.name: known for known in KINDS}.get(name) or Kind(name, "libx264", options=FAST)
    make(tmp_path / name, kind)
    with Video(tmp_path / name) as video:
        whole = {frame.t_s: frame.picture(32, 18).tobytes() for frame in video.frames()}
        assert video.seekable
    firsts = []
    for start_s in sorted(whole)[14::5]:
        with Video(tmp_path / name) as video:
            sought = {frame.t_s: frame.picture(32, 18).tobytes() for frame in video.frames(start_s)}
            assert video.losses == []
        firsts.append(min(sought))
        assert firsts[-1] <= start_s
        assert sought == {t_s: picture for t_s, picture in whole.items() if t_s >= min(sought)}
    assert max(firsts) > 0, "all read from the start"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("audio_only_two_tracks.mp4", "has no video stream"),
        ("broken_no_moov.mp4", "cannot be opened"),
        ("broken_text_named.mp4", "cannot be opened"),
    ],
)
def test_files_without_pictures_are_refused_with_the_reason(real_videos: Path, name: str, message: str) -> None:
    with pytest.raises(VideoError, match=message), Video(real_videos / name) as video:
        list(video.frames())


def test_damage_is_noted_and_what_is_readable_is_read(real_videos: Path) -> None:
    with Video(real_videos / "broken_decord_corrupted.mp4") as video:
        assert sum(1 for _ in video.frames()) == 49
        assert video.losses == [
            "1 undecodable packets (Invalid data found when processing input)",
            "1 damaged frames",
        ]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_file_is_shown_upright(tmp_path: Path, degrees: int) -> None:
    """A picture whose upper left quarter is red, stored turned, with a display matrix that turns it back."""
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = (255, 0, 0)
    stored = np.ascontiguousarray(np.rot90(upright, -degrees // 90))
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = stored.shape[0], stored.shape[1], "yuv420p"
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(stored)))
        out.mux(stream.encode(None))
    patch_display_matrix(path, degrees)
    with Video(path) as video:
        frame = next(iter(video.frames()))
        assert (video.width, video.height) == (64, 48)
        bgr = frame.picture(64, 48)
    assert bgr[12, 16, 2] > 200
    assert bgr[12, 48, 2] < 60
    assert bgr[36, 16, 2] < 60


def patch_display_matrix(path: Path, degrees: int) -> None:
    """Write a rotation into the track header of an MP4 file, as phones do."""
    one, minus = 0x00010000, 0xFFFF0000
    a, b, c, d = {90: (0, minus, one, 0), 180: (minus, 0, 0, minus), 270: (0, one, minus, 0)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0: times and ids, reserved, layer and volume
    matrix = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big") for value in matrix)
    path.write_bytes(data)


def test_pictures_of_interlaced_video_show_one_moment(tmp_path: Path) -> None:
    film = interlaced(tmp_path / "fields.mp4")
    with Video(film) as video:
        whole = [combing(frame.picture(320, 240)[..., 0]) for frame in video.frames()]
    assert max(map(combing, greys(film))) > 3
    assert max(whole) < 0.5


# Weights of red and blue in luma, by the number of the matrix in H.273; untagged footage is taken for BT.601.
MATRICES = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
STORED = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le", "yuva420p", "yuyv422")


@pytest.mark.parametrize("size", [(96, 64), (48, 32), (60, 40)], ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("stored", STORED)
def test_colours_are_those_that_luma_and_chroma_stand_for(
    stored: str, matrix: int, full: bool, size: tuple[int, int]
) -> None:
    """Within a level, and on average within half of one: FFmpeg's own way is darker by one or more."""
    rng, off = np.random.default_rng(0), []
    red, blue = MATRICES[matrix]
    full = full or stored == "yuvj420p"
    for luma, *chroma in rng.integers((40, 100, 100), (210, 156, 156), (20, 3)).tolist():
        planes = [np.full(96 * 64, luma), *(np.full(48 * 32, value) for value in chroma)]
        plain = VideoFrame.from_ndarray(np.concatenate(planes).astype(np.uint8).reshape(96, 96), format="yuv420p")
        plain.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        raw = plain.reformat(format=stored, dst_color_range=plain.color_range)
        raw.colorspace, raw.color_range = matrix, plain.color_range
        y, cb, cr = luma / 255, (chroma[0] - 128) / 255, (chroma[1] - 128) / 255
        if not full:
            y, cb, cr = (luma - 16) / 219, cb * 255 / 224, cr * 255 / 224
        r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
        wanted = 255 * np.clip([b, (y - red * r - blue * b) / (1 - red - blue), r], 0, 1)
        picture = Frame(0, 0.0, raw, 0, {}).picture(*size)
        off.append(picture.reshape(-1, 3).mean(axis=0) - wanted)
    assert np.abs(off).max() <= 1.0
    assert np.abs(np.mean(off, axis=0)).max() <= 0.5
