"""Whatever a shard's videos are, a span is exactly the frames that a player shows, at their times."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import training.data.spans
from curation.plan import ShardSettings
from shards.encode import cut_clip
from shards.pack import sample_json
from tests.shards.films import FILMS, Film, read_number, span, times_of
from tests.training.data.made import clip, numbers, row, settings, write_tar
from training.data.loader import Loader
from training.data.spans import BadError, Wanted, choose, read_pyav


def cut(film: Film, folder: Path, start: int, end: int, options: ShardSettings) -> tuple[str, dict[str, bytes], Any]:
    """A clip of a film as our writer puts it into a shard, and the cut itself."""
    path = film.write(folder / f"film{film.suffix}")
    about = span(times_of(path), start, end)
    made = cut_clip(str(path), about, options)
    return "clip", {"mp4": made.mp4, "txt": b"t", "json": sample_json(about, options, made).encode()}, made


CASES: dict[str, tuple[Any, ...]] = {
    "h264": ("constant", ShardSettings()),
    "hevc": ("constant", ShardSettings(codec="hevc")),
    "vp9": ("constant", ShardSettings(codec="vp9")),
    "av1": ("constant", ShardSettings(codec="av1")),
    "variable": ("variable", ShardSettings()),
    "resampled": ("constant", ShardSettings(fps=8.0)),
    "remuxed": ("without_b_frames", ShardSettings(video="remux"), 12, 36),
    "remuxed_hevc": ("open_gop_hevc", ShardSettings(video="remux"), 0, 43),
    "remuxed_rotated": ("rotated", ShardSettings(video="remux"), 12, 48),
    "remuxed_upside_down": ("upside_down", ShardSettings(video="remux"), 0, 60),
    "remuxed_from_an_edit_list": ("edit_list_and_negative_times", ShardSettings(video="remux")),
}


def truth(mp4: bytes) -> tuple[list[int], np.ndarray]:
    """The numbers that a player shows, and when, by decoding everything."""
    with av.open(io.BytesIO(mp4)) as container:
        frames = list(container.decode(video=0))
    pictures = [np.rot90(frame.to_ndarray(format="gray"), frame.rotation // 90) for frame in frames]
    times_s = np.array([float(frame.pts * frame.time_base) for frame in frames])
    return [read_number(picture) for picture in pictures], times_s - times_s[0]


@pytest.mark.parametrize("case", CASES)
def test_spans_of_what_our_writer_writes(tmp_path: Path, case: str) -> None:
    name, options, *more = CASES[case]
    start, end = more or (12, 36)
    key, parts, made = cut(FILMS[name], tmp_path, start, end, options)
    shown, times_s = truth(parts["mp4"])
    write_tar(tmp_path / "0.tar", [(key, parts)])
    assert made.how == ("remuxed" if options.video == "remux" and more else "encoded")
    starts = set()
    with Loader(settings(tmp_path, frames=4), workers=0, epochs=12) as loader:
        for batch in loader:
            first = shown.index(numbers(batch)[0][0])
            assert numbers(batch)[0] == shown[first : first + 4]
            np.testing.assert_allclose(batch.times_s[0], times_s[first : first + 4], atol=1e-5)
            starts.add(first)
    assert loader.faults.num_bad == 0
    assert len(starts) > 4


@pytest.mark.parametrize("name", ["constant", "variable", "vp9", "rotated"])
def test_both_decoders_show_the_same(tmp_path: Path, name: str) -> None:
    key, parts, _ = cut(FILMS[name], tmp_path, 0, 40, ShardSettings(codec="vp9" if name == "vp9" else "h264"))
    write_tar(tmp_path / "0.tar", [(key, parts)])
    batches = []
    for decoder in ("decord", "pyav"):
        with Loader(settings(tmp_path, frames=9, fps=8.0, decoder=decoder), workers=0, epochs=1) as loader:
            batches.append(next(iter(loader)))
    left, right = batches
    assert numbers(left) == numbers(right)
    np.testing.assert_allclose(left.times_s, right.times_s, atol=1e-5)
    assert abs(left.video.float() - right.video.float()).mean() < 1.5


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_that_are_left_out_on_the_way_change_no_pixel(tmp_path: Path, codec: str) -> None:
    """B-frames that others are predicted from, keyframes far away, references over several frames."""
    options = {"g": "60", "bf": "5", "refs": "4", "x264-params": "b-pyramid=normal:scenecut=0"}
    if codec == "libx265":
        options = {"x265-params": "keyint=60:bframes=5:b-pyramid=1:log-level=0"}
    noise = np.random.default_rng(0).integers(0, 256, (64, 600, 3), np.uint8)
    film = Film(codec=codec, count=60, options=options, paint=lambda i: noise[:, 3 * i : 3 * i + 384])
    mp4 = film.write(tmp_path / "film.mp4").read_bytes()
    for start in (0, 1, 7, 29, 50, 51):
        wanted = Wanted(9, None, (start + 0.5) / 52, (64, 384), (64, 384), 60, 2.5)
        quick, thorough = read_pyav(mp4, wanted), training.data.spans._thorough(mp4, wanted)
        assert [round(24 * t_s) for t_s in quick.times_s] == list(range(start, start + 9))
        for picture, true in zip(quick.pictures, thorough.pictures, strict=True):
            assert (picture == true).all()


def test_a_codec_that_does_not_say_how_far_its_frames_are_out_of_order_loses_none(tmp_path: Path) -> None:
    mp4 = (
        Film(codec="mpeg4", count=40, options={"g": "20", "bf": "2", "b": "4M"}).write(tmp_path / "f.mp4").read_bytes()
    )
    for start in (0, 19, 33):
        found = read_pyav(mp4, Wanted(7, None, (start + 0.5) / 34, (64, 384), (64, 384), 40, 40 / 24))
        assert [read_number(picture[..., 0]) for picture in found.pictures] == list(range(start, start + 7))


def test_frames_that_are_lost_by_opening_quickly_are_read_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.data.spans._from
    monkeypatch.setattr(training.data.spans, "_from", lambda *args: itertools.islice(real(*args), 1, None))
    found = read_pyav(clip(0), Wanted(7, None, 0.0, (64, 384), (64, 384), 20, 20 / 24))
    assert [read_number(picture[..., 0]) for picture in found.pictures] == list(range(7))


def test_what_an_edit_list_hides_is_not_read(tmp_path: Path) -> None:
    """A stranger's file: decord would count 60 frames."""
    path = dataclasses.replace(FILMS["edit_list_and_negative_times"], count=60).write(tmp_path / "film.mp4")
    write_tar(tmp_path / "0.tar", [("clip", {"mp4": path.read_bytes()})])
    with Loader(settings(tmp_path, frames=43), workers=0, epochs=1) as loader:
        (batch,) = loader
    assert numbers(batch) == [list(range(17, 60))]
    assert loader.faults.num_bad == 0


def test_a_playlist_that_calls_itself_a_video_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(clip())
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    write_tar(tmp_path / "0.tar", [("list", {"mp4": playlist.encode(), "json": row()}), ("good", {"mp4": clip()})])
    for decoder in ("decord", "pyav"):
        with Loader(settings(tmp_path, decoder=decoder), workers=0, epochs=1) as loader:
            assert {key for batch in loader for key in batch.keys} == {"good"}
        assert loader.faults.num_bad == 1


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".webm", "libvpx-vp9"), (".mkv", "libx264"), (".mp4", "libsvtav1"), (".avi", "libx264")]
)
def test_strangers_videos_of_other_kinds(tmp_path: Path, suffix: str, codec: str) -> None:
    write_tar(tmp_path / "0.tar", [("clip", {suffix[1:]: clip(100, 30, suffix, codec), "txt": b"words"})])
    with Loader(settings(tmp_path, frames=7), workers=0, epochs=6) as loader:
        for batch in loader:
            (shown,) = numbers(batch)
            assert shown == list(range(shown[0], shown[0] + 7))
            assert 100 <= shown[0] <= 123
            assert batch.captions == ["words"]
            assert batch.rows == [{}]


def test_colours_and_sizes_are_kept(tmp_path: Path) -> None:
    """Red left, blue right, half as large: what is cut out has the colours in their places."""

    def paint(i: int) -> np.ndarray:
        picture = np.zeros((128, 256, 3), np.uint8)
        picture[:, :128], picture[:, 128:] = (200, 40, 40), (40, 40, 200)
        return picture

    for codec, decoder in (("h264", "decord"), ("h264", "pyav"), ("av1", "pyav")):
        key, parts, _ = cut(Film(paint=paint, count=12), tmp_path, 0, 12, ShardSettings(codec=codec))  # type: ignore[arg-type]
        write_tar(tmp_path / "0.tar", [(key, parts)])
        from training.data.settings import Bucket

        options = settings(tmp_path, buckets=[Bucket(frames=5, height=64, width=128)], decoder=decoder)
        with Loader(options, workers=0, epochs=1) as loader:
            (batch,) = loader
        left, right = batch.video[0, :, 2, 32, 20].tolist(), batch.video[0, :, 2, 32, 108].tolist()
        np.testing.assert_allclose(left, (200, 40, 40), atol=6)
        np.testing.assert_allclose(right, (40, 40, 200), atol=6)


TIMES = np.arange(20) / 10  # 2 s of 10 frames a second


@pytest.mark.parametrize(
    ("frames", "fps", "chance", "indices"),
    [
        (4, None, 0.0, [0, 1, 2, 3]),
        (4, None, 0.9999, [16, 17, 18, 19]),
        (20, None, 0.9999, list(range(20))),
        (4, 5.0, 0.0, [0, 2, 4, 6]),
        (10, 5.0, 0.0, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (10, 5.0, 0.9999, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]),
        (3, 4.0, 0.0, [0, 2, 5]),
        (1, None, 0.5, [10]),
    ],
)
def test_which_frames_a_span_shows(frames: int, fps: float | None, chance: float, indices: list[int]) -> None:
    found, times_s = choose(TIMES, 2.0, frames, fps, chance)
    assert found.tolist() == indices
    assert times_s[0] == TIMES[indices[0]]
    np.testing.assert_allclose(np.diff(times_s), 1 / (fps or 10))


@pytest.mark.parametrize(("frames", "fps"), [(21, None), (11, 5.0)])
def test_a_clip_that_is_shorter_than_the_catalogue_said_is_bad(frames: int, fps: float | None) -> None:
    with pytest.raises(BadError) as error:
        choose(TIMES, 2.0, frames, fps, 0.0)
    assert error.value.reason == "short_clip"


def test_a_row_that_promises_more_frames_than_there_are_is_bad(tmp_path: Path) -> None:
    for codec in ("h264", "av1"):
        data = clip(0, 20, ".mp4", {"h264": "libx264", "av1": "libsvtav1"}[codec])
        write_tar(
            tmp_path / "0.tar", [("clip", {"mp4": data, "json": row(48, codec=codec)}), ("good", {"mp4": clip()})]
        )
        with Loader(settings(tmp_path), workers=0, epochs=1) as loader:
            assert [key for batch in loader for key in batch.keys] == ["good"]
        assert dict(loader.faults.reasons) == {"short_clip": 1}


def test_decord_is_asked_for_by_name_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from curation.errors import UsageError

    write_tar(tmp_path / "0.tar", [("clip", {"mp4": clip(), "json": row()})])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install decord, or leave `decoder` out"):
        Loader(settings(tmp_path, decoder="decord"), workers=0)
    Loader(settings(tmp_path), workers=0).close()
