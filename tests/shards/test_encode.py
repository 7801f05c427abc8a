"""A clip holds exactly its frames, whatever its source is like, and the same bytes every time."""

from __future__ import annotations

import bisect
import collections
import io
import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

import curation.footage
from curation.errors import VideoError
from curation.plan import ShardSettings
from curation.run import run
from curation.table import Store
from shards.encode import cut_clip, exact_rate
from shards.picture import output_size
from tests.shards.films import FILMS, Film, numbers, span, times_of

Made = Callable[[str], tuple[Path, list[float], int]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Name of a film to its file, its frames' times and the number of its first shown frame; each is made once."""
    folder, known = tmp_path_factory.mktemp("films"), dict[str, tuple[Path, list[float], int]]()

    def make(name: str) -> tuple[Path, list[float], int]:
        if name not in known:
            film = FILMS[name]
            path = film.write(folder / f"{name}{film.suffix}")
            known[name] = path, times_of(path), film.hidden
        return known[name]

    return make


def frames_of(clip: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(clip)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("name", FILMS)
def test_the_films_are_what_they_say(name: str, made: Made) -> None:
    path, times, hidden = made(name)
    assert numbers(path) == list(range(hidden, FILMS[name].count))
    assert len(times) == FILMS[name].count - hidden + 1


@pytest.mark.parametrize("name", FILMS)
def test_a_clip_has_exactly_its_frames_at_their_times(name: str, made: Made) -> None:
    path, times, hidden = made(name)
    last = len(times) - 1
    for start, end in [(0, 1), (0, 13), (11, 12), (12, 24), (13, 37), (last - 1, last), (0, last)]:
        cut = cut_clip(str(path), span(times, start, end), ShardSettings())
        assert numbers(cut.mp4) == list(range(hidden + start, hidden + end))
        assert [frame.time for frame in frames_of(cut.mp4)] == pytest.approx(
            [t - times[start] for t in times[start:end]], abs=1 / 90000
        )
        assert cut.facts["num_frames"] == end - start


@pytest.mark.parametrize("video", ["encode", "remux"])
@pytest.mark.parametrize("name", FILMS)
@hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
@hypothesis.given(cuts=strategies.sets(strategies.integers(1, 42), max_size=4))
def test_the_clips_of_a_shot_partition_it(name: str, video: Any, cuts: set[int], made: Made) -> None:
    path, times, hidden = made(name)
    settings = ShardSettings(video=video, preset="ultrafast")
    bounds = [0, *sorted(cuts), len(times) - 1]
    clips = [cut_clip(str(path), span(times, a, b), settings) for a, b in itertools.pairwise(bounds)]
    shown = [n for clip in clips for n in numbers(clip.mp4)]
    assert shown == list(range(hidden, hidden + len(times) - 1))


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_a_clip_lasts_as_long_as_its_span(codec: Any, made: Made) -> None:
    path, times, _ = made("variable")
    cut = cut_clip(str(path), span(times, 3, 20), ShardSettings(codec=codec))
    assert numbers(cut.mp4) == list(range(3, 20))
    with av.open(io.BytesIO(cut.mp4)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == codec == cut.facts["codec"]
        assert float(stream.duration * stream.time_base) == pytest.approx(times[20] - times[3], abs=0.001)  # type: ignore[operator]


@pytest.mark.parametrize("fps", [5.0, 10.0, 23.976, 30.0, 60.0])
@pytest.mark.parametrize("name", ["constant", "variable", "59.94_fps"])
def test_a_rate_shows_what_was_on_the_screen(name: str, fps: float, made: Made) -> None:
    path, times, _ = made(name)
    start, end = 7, 55
    cut = cut_clip(str(path), span(times, start, end), ShardSettings(fps=fps))
    rate = float(exact_rate(fps))
    count = round((times[end] - times[start]) * rate)
    wanted = [bisect.bisect(times, times[start] + i / rate + 1e-6) - 1 for i in range(count)]
    assert numbers(cut.mp4) == wanted
    assert [frame.time for frame in frames_of(cut.mp4)] == pytest.approx([i / rate for i in range(count)], abs=1e-4)
    assert cut.facts == {
        "num_frames": count,
        "fps": rate,
        "width": 384,
        "height": 64,
        "codec": "h264",
        "has_audio": False,
    }


def test_a_rate_gives_at_least_one_frame(made: Made) -> None:
    path, times, _ = made("constant")
    cut = cut_clip(str(path), span(times, 9, 11), ShardSettings(fps=1.0))
    assert numbers(cut.mp4) == [9]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (24.0, Fraction(24)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_rounded_rates_mean_exact_ones(fps: float, exact: Fraction) -> None:
    assert exact_rate(fps) == exact


@pytest.mark.parametrize(("codec", "repeats"), [("h264", 40), ("hevc", 10), ("vp9", 10), ("av1", 10)])
def test_encoding_repeats_byte_for_byte(codec: Any, repeats: int, tmp_path: Path) -> None:
    """x264's assembly does not, unless it is told to: about one run in ten differed."""
    pan = curation.footage.Shot(camera="pan_right", camera_speed=0.4, seconds=1.5)
    film = curation.footage.Film(name="f.mp4", width=160, height=120, shots=(pan,))
    curation.footage.write_film(tmp_path / film.name, film)
    row = {"start_s": 0.0, "end_s": 1.5, "num_frames": 36, "fps": 24.0}
    settings = ShardSettings(codec=codec)
    clips = [cut_clip(str(tmp_path / film.name), row, settings).mp4 for _ in range(repeats)]
    assert len(collections.Counter(clips)) == 1


def test_a_source_that_has_lost_frames_is_refused(tmp_path: Path) -> None:
    Film(count=20).write(tmp_path / "source.mp4")
    row = {"start_s": 0.0, "end_s": 2.0, "num_frames": 48, "fps": 24.0}
    with pytest.raises(VideoError, match=r"gave 20 frames from 0.000 to 2.000 s, not 48"):
        cut_clip(str(tmp_path / "source.mp4"), row, ShardSettings())


def test_settings_of_the_encoder_are_used(tmp_path: Path) -> None:
    pan = curation.footage.Shot(camera="pan_right", camera_speed=0.4, seconds=2.0)
    film = curation.footage.Film(name="f.mp4", shots=(pan,))
    curation.footage.write_film(tmp_path / film.name, film)
    row = {"start_s": 0.0, "end_s": 2.0, "num_frames": 48, "fps": 24.0}
    clip = cut_clip(str(tmp_path / film.name), row, ShardSettings(short_side_px=180, gop_s=0.5)).mp4
    with av.open(io.BytesIO(clip)) as container:
        frames = list(container.decode(video=0))
    assert {(frame.width, frame.height) for frame in frames} == {(320, 180)}
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 12, 24, 36]


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((640, 360), None, (640, 360)),
        ((193, 144), None, (192, 144)),
        ((1080, 1920), 480, (480, 854)),
        ((320, 180), 480, (320, 180)),
    ],
)
def test_output_size(size: tuple[int, int], short: int | None, expected: tuple[int, int]) -> None:
    assert output_size(*size, short) == expected


def test_a_film_of_another_pipeline_and_size_mid_stream_is_no_problem(tmp_path: Path) -> None:
    """Two films of different size joined as raw H.264: one stream whose resolution changes."""
    raw = b""
    for i, (width, height) in enumerate([(320, 180), (160, 120)]):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="h264") as out:
            stream = out.add_stream("libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for k in range(30):
                picture = np.full((height, width, 3), 60 + 100 * i + k, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            out.mux(stream.encode(None))
        raw += buffer.getvalue()
    (tmp_path / "changes.h264").write_bytes(raw)
    summary = run("as_is", [str(tmp_path / "changes.h264")], tmp_path / "out", engine="local", shards=False)
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert summary.videos["done"] == 1
    clip = cut_clip(str(tmp_path / "changes.h264"), rows[0], ShardSettings()).mp4
    with av.open(io.BytesIO(clip)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == rows[0]["num_frames"] == 60
    assert {(frame.width, frame.height) for frame in frames} == {(320, 180)}
