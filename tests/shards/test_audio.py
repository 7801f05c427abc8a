"""Sound is in step with the picture, cut to the clip, and never the reason why a clip fails."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.plan import ShardSettings
from shards.encode import cut_clip
from tests.shards.films import numbered, numbers, span, times_of

BEEP_S = 2.0  # starts with frame 50 of 25 fps


def beeping(
    path: Path,
    *,
    codec: str = "aac",
    rate: int = 48000,
    layout: str = "stereo",
    late_s: float = 0.0,
    damaged: bool = False,
) -> Path:
    """100 numbered frames at 25 fps with a beep of 0.2 s that starts with frame 50.

    Args:
        late_s: where the sound track begins.
        damaged: fill its packets with noise.
    """
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=25, options={"g": "25"})
        video.width, video.height, video.pix_fmt = 384, 64, "yuv420p"
        audio: Any = out.add_stream(codec, rate=rate, layout=layout)
        for i in range(100):
            out.mux(video.encode(av.VideoFrame.from_ndarray(numbered(i))))
        out.mux(video.encode(None))
        t = late_s + np.arange(round((4 - late_s) * rate)) / rate
        wave = np.where((t >= BEEP_S) & (t < BEEP_S + 0.2), 0.5 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.float32)
        channels = audio.channels
        for at in range(0, len(wave), 1024):
            block = np.ascontiguousarray(np.repeat(wave[None, at : at + 1024], channels, axis=0))
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = at + round(late_s * rate)
            for packet in audio.encode(frame):
                out.mux(spoilt(packet, noise) if damaged else packet)
        out.mux(audio.encode(None))
    return path


def spoilt(packet: av.Packet, noise: np.random.Generator) -> av.Packet:
    bad = av.Packet(noise.integers(0, 256, packet.size, np.uint8).tobytes())
    bad.pts, bad.dts, bad.time_base, bad.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    return bad


def sound_of(clip: bytes) -> tuple[np.ndarray, int, float]:
    """(samples of the first channel, rate, when the first is heard), without what the track says is beyond its end."""
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        length_s = float((stream.duration or 0) * (stream.time_base or 0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    count = round(length_s * stream.rate)
    assert count <= len(samples) < count + 1024  # players stop at the end of the track, decoders give whole AAC frames
    assert frames[0].time is not None
    return samples[:count], frames[0].sample_rate, frames[0].time


def onset_s(clip: bytes) -> float:
    samples, rate, start_s = sound_of(clip)
    return start_s + float(np.flatnonzero(np.abs(samples) > 0.1)[0]) / rate


@pytest.fixture(params=["encode", "remux"])
def settings(request: pytest.FixtureRequest) -> Iterator[ShardSettings]:
    yield ShardSettings(audio="keep", video=request.param)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "layout"),
    [
        (".mp4", "aac", 48000, "stereo"),
        (".mp4", "aac", 44100, "mono"),
        (".mkv", "libmp3lame", 44100, "stereo"),
        (".mkv", "libopus", 48000, "stereo"),
        (".ts", "aac", 48000, "stereo"),
        (".mkv", "aac", 96000, "5.1"),
    ],
)
@pytest.mark.parametrize(("start", "end"), [(0, 75), (25, 75), (44, 60), (50, 55)])
def test_a_beep_is_heard_with_its_frame(
    suffix: str, codec: str, rate: int, layout: str, start: int, end: int, settings: ShardSettings, tmp_path: Path
) -> None:
    source = beeping(tmp_path / f"source{suffix}", codec=codec, rate=rate, layout=layout)
    cut = cut_clip(str(source), span(times_of(source), start, end), settings)
    assert numbers(cut.mp4) == list(range(start, end))
    assert cut.facts["has_audio"]
    samples, heard_rate, start_s = sound_of(cut.mp4)
    assert start_s == 0
    assert len(samples) / heard_rate == pytest.approx((end - start) / 25, abs=0.001)
    assert onset_s(cut.mp4) == pytest.approx(BEEP_S - start / 25, abs=0.02)


def test_sound_that_begins_late_is_silent_before(settings: ShardSettings, tmp_path: Path) -> None:
    source = beeping(tmp_path / "source.mp4", late_s=1.5)
    cut = cut_clip(str(source), span(times_of(source), 25, 75), settings)
    samples, rate, start_s = sound_of(cut.mp4)
    assert (start_s, len(samples) / rate) == (0, pytest.approx(2.0, abs=0.001))
    assert onset_s(cut.mp4) == pytest.approx(1.0, abs=0.02)
    before = cut_clip(str(source), span(times_of(source), 0, 25), settings)
    assert not before.facts["has_audio"]


def test_damaged_sound_costs_the_sound_and_not_the_clip(settings: ShardSettings, tmp_path: Path) -> None:
    source = beeping(tmp_path / "source.mp4", damaged=True)
    cut = cut_clip(str(source), span(times_of(source), 25, 75), settings)
    assert numbers(cut.mp4) == list(range(25, 75))
    assert not cut.facts["has_audio"]
    with av.open(io.BytesIO(cut.mp4)) as container:
        assert not container.streams.audio


def test_sound_in_an_unknown_codec_costs_the_sound_and_not_the_clip(settings: ShardSettings, tmp_path: Path) -> None:
    source = beeping(tmp_path / "source.mp4")
    source.write_bytes(source.read_bytes().replace(b"mp4a", b"zzzz").replace(b"esds", b"free"))
    cut = cut_clip(str(source), span(times_of(source), 25, 75), settings)
    assert numbers(cut.mp4) == list(range(25, 75))
    assert not cut.facts["has_audio"]


def test_a_film_without_sound_stays_one(settings: ShardSettings, tmp_path: Path) -> None:
    from tests.shards.films import Film

    source = Film().write(tmp_path / "silent.mp4")
    assert not cut_clip(str(source), span(times_of(source), 0, 24), settings).facts["has_audio"]


def test_sound_is_dropped_unless_it_is_asked_for(tmp_path: Path) -> None:
    source = beeping(tmp_path / "source.mp4")
    for video in ("encode", "remux"):
        cut = cut_clip(str(source), span(times_of(source), 0, 25), ShardSettings(video=video))  # type: ignore[arg-type]
        with av.open(io.BytesIO(cut.mp4)) as container:
            assert not container.streams.audio
        assert not cut.facts["has_audio"]


def test_sound_repeats_byte_for_byte(settings: ShardSettings, tmp_path: Path) -> None:
    source = beeping(tmp_path / "source.mp4")
    row = span(times_of(source), 25, 75)
    assert len({cut_clip(str(source), row, settings).mp4 for _ in range(10)}) == 1


def test_real_films_whose_sound_is_odd_lose_no_clip(real_videos: Path, settings: ShardSettings) -> None:
    for name in ("broken_failing_audio.mp4", "talking_man.flv", "talking_man_av1.mp4", "nasa_13013_multistream.mp4"):
        times = times_of(real_videos / name)
        row = span(times, 10, min(60, len(times) - 1))
        assert cut_clip(str(real_videos / name), row, settings).facts["num_frames"] == row["num_frames"]
