"""Files that are well formed and mean harm: playlists, bombs, edit lists that repeat, impossible times."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import curation.video
from curation.clips import Range
from curation.config import load_plan
from curation.decode import Decode, Decoded, Decoder, decode_video
from curation.errors import VideoError
from curation.isolate import Isolated
from curation.plan import ShardSettings
from curation.run import run
from curation.table import Store
from curation.video import Video
from shards.encode import cut_clip
from tests.mutants import FPS, HEIGHT, NUM_FRAMES, WIDTH, Kind, make

PLAN = load_plan("weight_free")


def decode(path: Path) -> Decoded:
    return decode_video(str(path), {"video": path.name, "video_id": "0" * 24}, PLAN.decode, PLAN.dense, False)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "list.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile secret.ts\n",
    "list.mkv": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "list.mov": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    "<Period><AdaptationSet><Representation><BaseURL>secret.ts</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_under_any_name_is_no_video(name: str, tmp_path: Path) -> None:
    make(tmp_path / "secret.ts", Kind("secret.ts", "mpeg2video"))
    (tmp_path / name).write_text(PLAYLISTS[name])
    with pytest.raises(VideoError, match="cannot be opened"):
        Video(tmp_path / name)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_ffmpeg_by_itself_would_read_what_a_playlist_names(name: str, tmp_path: Path) -> None:
    """Should this fail one day, the test above has lost its point."""
    make(tmp_path / "secret.ts", Kind("secret.ts", "mpeg2video"))
    (tmp_path / name).write_text(PLAYLISTS[name])
    with av.open(str(tmp_path / name)) as container:
        assert sum(1 for _ in container.decode(video=0)) == NUM_FRAMES


def test_a_pattern_of_pictures_is_no_video(tmp_path: Path) -> None:
    for name in ("frame%d.png", "frame1.png", "frame2.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8), np.uint8))
        with pytest.raises(VideoError, match="in no video format that is read"):
            Video(tmp_path / name)


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "plain.mp4", Kind("plain.mp4", "mpeg4"))
    (tmp_path / "plain.mp4").rename("concat:other.mp4")
    with Video("concat:other.mp4") as video:
        assert sum(1 for _ in video.frames()) == NUM_FRAMES


def resize_canvas(path: Path, width: int, height: int) -> None:
    """Make a GIF say that it is larger than its pictures."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, 6, width, height)
    path.write_bytes(data)


@pytest.mark.parametrize("pixels", [(65535, 65535), (20000, 20000)])
def test_a_frame_of_absurd_size_is_refused(pixels: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "bomb.gif"
    make(path, Kind("bomb.gif", "gif", pix_fmt="rgb8"))
    resize_canvas(path, *pixels)
    video = decode(path).video
    assert video["status"] == "failed"
    assert "no frame could be decoded" in video["error"]


def test_a_bomb_costs_one_video(tmp_path: Path) -> None:
    """A small file whose frames take more memory than the decoder may have, between two sound ones."""
    make(tmp_path / "sound.mp4", Kind("sound.mp4", "mpeg4"))
    path = tmp_path / "bomb.gif"
    make(path, Kind("bomb.gif", "gif", pix_fmt="rgb8"))
    resize_canvas(path, 12000, 11000)  # half a gigabyte, just below what is refused
    child = Isolated(Decoder(PLAN.decode, PLAN.dense), stall_s=30, memory_bytes=256 << 20)
    try:
        child.start()
        for name in ("sound.mp4", "bomb.gif", "sound.mp4"):
            args = str(tmp_path / name), {"video": name, "video_id": "0" * 24}, Range(), str(tmp_path / "sheets")
            if name == "sound.mp4":
                assert child.call(*args).num_frames == NUM_FRAMES
            else:
                with pytest.raises(VideoError, match="needed more than 256 MB"):
                    child.call(*args)
    finally:
        child.close()


def test_the_default_ceiling_is_enough_for_8k() -> None:
    """10 bit HEVC at 7680x4320 was measured at 900 MB with two threads."""
    assert Decode().threads <= 2
    assert Decode().memory_mb >= 2 * 900


def repeat_edits(data: bytes, times: int) -> bytes:
    """Make an MP4 whose index stands last show its whole film again and again."""
    at = data.index(b"elst") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    whole = data[at + 16 : at + length][:12]
    edits = struct.pack(">I4sII", 16 + 12 * times, b"elst", 0, times) + whole * times
    grown = bytearray(data[:at] + edits + data[at + length :])
    for box in (b"moov", b"trak", b"edts"):
        start = grown.index(box) - 4
        size = int.from_bytes(grown[start : start + 4], "big") + len(edits) - length
        grown[start : start + 4] = size.to_bytes(4, "big")
    return bytes(grown)


@pytest.mark.parametrize("times", [3, 500])
def test_an_edit_list_that_repeats_the_film_comes_to_an_end(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curation.video, "_MOST_REPEATED_BYTES", 1 << 12)
    path = tmp_path / "again.mp4"
    make(path, Kind("again.mp4", "libx264", options=(("preset", "ultrafast"), ("bf", "2"), ("g", "12"))))
    path.write_bytes(repeat_edits(path.read_bytes(), times))
    video = decode(path).video
    assert video["status"] == "done"
    if times == 3:
        assert (video["num_frames"], video["error"]) == (3 * NUM_FRAMES, None)
    else:
        assert 3 * NUM_FRAMES < video["num_frames"] < 100 * NUM_FRAMES
        assert "bytes came out of it" in video["error"]


def retimed(path: Path, time_base: Fraction, time_of: Callable[[int], int]) -> None:
    """A film whose frame i is shown at ``time_of(i)`` ticks."""
    make(path.with_suffix(".avi"), Kind("sound.avi", "mjpeg", pix_fmt="yuvj420p"))
    with av.open(str(path.with_suffix(".avi"))) as sound, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(sound.streams.video[0])
        stream.time_base = time_base
        for i, packet in enumerate(p for p in sound.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, time_base
            packet.pts = time_of(i)
            packet.dts = min(map(time_of, range(i, NUM_FRAMES + 1))) - (NUM_FRAMES - i)  # must rise, whatever pts do
            packet.duration = max(1, time_of(i + 1) - time_of(i))
            out.mux(packet)


DAY = 86400 * 1000  # milliseconds


@pytest.mark.parametrize("name", ["jump.mkv", "jump.mov"])
def test_timestamps_that_jump_by_a_day_are_closed_up(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    retimed(path, Fraction(1, 1000), lambda i: 40 * i + DAY * (i >= 30))
    decoded = decode(path)
    video = decoded.video
    assert (video["status"], video["num_frames"]) == ("done", NUM_FRAMES)
    assert video["duration_s"] == pytest.approx(NUM_FRAMES * 0.04, abs=0.01)
    assert "1 jumps of more than 600 s in the timestamps left out" in video["error"]
    for clip in decoded.clips.to_pylist():  # found again by seeking, behind the jump too
        assert cut_clip(str(path), clip, ShardSettings()).mp4


def test_clips_behind_a_gap_that_was_closed_up_are_cut_from_where_they_are(tmp_path: Path) -> None:
    path, config = tmp_path / "gap.mkv", tmp_path / "gaps.yaml"
    retimed(path, Fraction(1, 1000), lambda i: 300_000 * i + 400_000 * (i >= 3))  # by time alone, frame 3 is at 1300 s
    config.write_text("gaps:\n  stages:\n    - decode: {detector: none, max_clip_s: 1500}\n")
    run("gaps", [str(path)], tmp_path / "out", config=str(config), engine="local")
    [video] = Store(tmp_path / "out").videos().to_pylist()
    assert video["seekable"] is False
    with Video(path) as source:
        truth = {frame.t_s: frame.grey(32, 18).astype(int) for frame in source.frames()}
    clips = Store(tmp_path / "out").clips().to_pylist()
    assert [clip["start_s"] for clip in clips[:3]] == [0.0, 1500.0, 3000.0]
    [shard] = (tmp_path / "out" / "shards").glob("*.tar")
    with tarfile.open(shard) as tar:
        for clip in clips:
            tar.extract(f"{clip['clip_id']}.mp4", tmp_path, filter="data")
            with Video(tmp_path / f"{clip['clip_id']}.mp4") as cut:
                for frame in cut.frames():
                    shown = frame.grey(32, 18)
                    assert np.abs(shown - truth[round(clip["start_s"] + frame.t_s, 3)]).mean() < 6


def test_timestamps_that_go_back_are_said(tmp_path: Path) -> None:
    """Two recordings, one written behind the other."""
    make(tmp_path / "one.mp4", Kind("one.mp4", "libx264", muxer=(("movflags", "frag_keyframe+empty_moov"),)))
    path = tmp_path / "both.mp4"
    path.write_bytes((tmp_path / "one.mp4").read_bytes() * 2)
    video = decode(path).video
    if video["num_frames"] > NUM_FRAMES:
        assert "timestamps go back" in video["error"]
        assert video["seekable"] is False


def test_a_length_that_is_no_number_is_none(tmp_path: Path) -> None:
    path = tmp_path / "endless.mkv"
    make(path, Kind("endless.mkv", "libx264"))
    data = path.read_bytes()
    at = data.index(b"DURATION")
    told = data.index(b"00:00:", at)
    path.write_bytes(data[: told + 6] + b"inf".ljust(12, b"\0") + data[told + 18 :])
    with Video(path) as video:
        assert video.declared_duration_s() is None


def test_one_wild_timestamp_moves_only_its_own_frame(tmp_path: Path) -> None:
    path = tmp_path / "wild.mkv"
    retimed(path, Fraction(1, 1000), lambda i: 40 * i + DAY * (i == 17))
    with Video(path) as video:
        assert [frame.t_s for frame in video.frames()] == pytest.approx([0.04 * i for i in range(NUM_FRAMES)])


def repeated(i: int) -> int:
    return 40 * (i - (i >= 30))


def repeated_after_a_pause(i: int) -> int:
    return repeated(i) + 5000 * (i >= 29)


def set_back(i: int) -> int:
    """Not by much: as where a recording was joined to another."""
    return 40 * i - 400 * (i >= 30)


def disordered(i: int) -> int:
    """As in an AVI file of H.264 with B-frames."""
    return 40 * i - 60 * (i % 3 == 0 and i > 0)


REPAIRS: dict[Callable[[int], int], Callable[[int], int]] = {
    repeated: lambda i: repeated(i) + 20 * (i == 30),
    repeated_after_a_pause: lambda i: repeated_after_a_pause(i) + 20 * (i == 30),
    set_back: lambda i: 40 * i,
    disordered: lambda i: 40 * i,
}


@pytest.mark.parametrize("time_of", REPAIRS)
def test_timestamps_that_do_not_rise_are_mended_and_move_no_others(
    time_of: Callable[[int], int], tmp_path: Path
) -> None:
    path = tmp_path / "mended.mkv"
    retimed(path, Fraction(1, 1000), time_of)
    with Video(path) as video:
        times = [frame.t_s for frame in video.frames()]
        assert times == pytest.approx([REPAIRS[time_of](i) / 1000 for i in range(NUM_FRAMES)])
        assert video.losses == []
        assert not video.seekable


def test_a_clip_behind_a_repeated_timestamp_has_its_own_frames(tmp_path: Path) -> None:
    path = tmp_path / "repeated.mkv"
    retimed(path, Fraction(1, 1000), lambda i: 40 * (i - (i >= 6)))
    decoded = decode(path)
    row = {**decoded.clips.to_pylist()[-1], "seekable": decoded.video["seekable"]}
    with Video(path) as source:
        frames = list(source.frames())
        shown = [frame.grey(32, 18).astype(int) for frame in frames if row["start_s"] <= frame.t_s < row["end_s"]]
    assert row["start_s"] > frames[6].t_s
    (tmp_path / "cut.mp4").write_bytes(cut_clip(str(path), row, ShardSettings()).mp4)
    with Video(tmp_path / "cut.mp4") as cut:
        pictures = [frame.grey(32, 18) for frame in cut.frames()]
    assert len(pictures) == len(shown) == row["num_frames"]
    assert max(np.abs(one - other).mean() for one, other in zip(pictures, shown, strict=True)) < 6


def test_a_film_of_mended_timestamps_is_not_put_together_from_ranges(tmp_path: Path) -> None:
    path = tmp_path / "repeated.mkv"
    retimed(path, Fraction(1, 1000), repeated)
    decoder = Decoder(PLAN.decode, PLAN.dense)
    decoder.setup()
    row = {"video": path.name, "video_id": "0" * 24}
    with pytest.raises(VideoError, match="in ranges"):
        decoder(str(path), row, Range(0.0, 2.0), str(tmp_path / "sheets.arrow"))


def test_a_file_that_calls_every_frame_a_keyframe_is_read_from_the_start(tmp_path: Path) -> None:
    """Frames of MPEG-4 in an MP4 without the table of its keyframes, which FFmpeg reads as: all are."""
    path = tmp_path / "all_key.mp4"
    make(path, Kind("all_key.mp4", "mpeg4", options=(("g", "25"), ("bf", "0"))))
    with Video(path) as video:
        whole = {frame.t_s: frame.grey(32, 18).tobytes() for frame in video.frames()}
    data = path.read_bytes()
    assert data.count(b"stss") == 1
    path.write_bytes(data.replace(b"stss", b"free"))
    start_s = sorted(whole)[len(whole) * 2 // 3]
    with Video(path) as video:
        sought = {frame.t_s: frame.grey(32, 18).tobytes() for frame in video.frames(start_s)}
    assert {t: p for t, p in sought.items() if t >= start_s} == {t: p for t, p in whole.items() if t >= start_s}


def test_a_still_held_for_minutes_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "slides.mkv"
    retimed(path, Fraction(1, 1000), lambda i: 300_000 * i)
    video = decode(path).video
    assert video["error"] is None
    assert video["duration_s"] == pytest.approx(300 * NUM_FRAMES)
    assert video["num_clips"] <= NUM_FRAMES


def test_a_rate_of_a_billion_frames_a_second_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "fast.mkv"
    retimed(path, Fraction(1, 1000), lambda i: 0)
    decoded = decode(path)
    assert decoded.video["num_frames"] == NUM_FRAMES
    assert decoded.video["fps"] <= 1000
    ids = decoded.clips["clip_id"].to_pylist()
    assert len(set(ids)) == len(ids)


def test_pixels_of_absurd_shape_are_taken_for_square(tmp_path: Path) -> None:
    path = tmp_path / "shape.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        stream.sample_aspect_ratio = Fraction(1, 1000)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))))
        out.mux(stream.encode(None))
    video = decode(path).video
    assert (video["width"], video["height"]) == (WIDTH, HEIGHT)
