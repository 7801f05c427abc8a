"""Settings that do not go together are found before any work starts, with their place."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import av
import pytest
import yaml

from curation.config import default_file, load_plan
from curation.errors import ConfigError
from curation.plan import ShardSettings
from shards.codecs import CODECS, misfit
from shards.encode import cut_clip
from shards.pack import encoding_key
from tests.shards.films import Film, numbers, span, times_of

HEAD = "p:\n  stages:\n    - decode\n"


@pytest.mark.parametrize(
    ("shards", "column", "message"),
    [
        ("{codec: h265}", 12, "'h264', 'hevc', 'vp9' or 'av1'"),
        ("{codec: vp9, crf: 64}", 24, "less than or equal to 63 for vp9, got 64"),
        ("{crf: 60}", 12, "less than or equal to 51 for h264, got 60"),
        ("{crf: -1}", 12, "should be 0 or more"),
        ("{codec: av1, preset: veryfast}", 24, "should be one of 10, 9, 8"),
        ("{codec: hevc, preset: 3}", 25, "'ultrafast', 'superfast'"),
        ("{preset: [fast]}", 12, "got ['fast']"),
        ("{video: remux, fps: 24}", 26, "copied packets keep their times"),
        ("{fps: 0}", 12, "greater than 0"),
        ("{fps: '24'}", 12, "a valid number"),
        ("{audio: yes}", 12, "'drop' or 'keep'"),
        ("{video: cut}", 12, "'encode', 'remux' or 'copy'"),
        ("{video: copy}", 12, "packs whole files, and 'p' cuts clips out of them; use `video: remux`"),
    ],
)
def test_a_setting_that_does_not_fit_is_said_with_its_place(
    shards: str, column: int, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{HEAD}  shards: {shards}\n")
    with pytest.raises(ConfigError) as caught:
        load_plan("p", file)
    assert str(caught.value).startswith(f"{file}:4:{column}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("decode", "whole"),
    [
        ("{detector: none, max_clip_s: null}", True),
        ("{detector: none, max_clip_s: null, grid_s: 3}", True),
        ("{detector: none}", False),
        ("{max_clip_s: null}", False),
    ],
)
def test_files_are_copied_only_where_decoding_cuts_nothing(decode: str, whole: bool, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"p:\n  stages:\n    - decode: {decode}\n  shards: {{video: copy}}\n")
    if whole:
        assert load_plan("p", file).shards.video == "copy"
    else:
        with pytest.raises(ConfigError, match="video: copy packs whole files"):
            load_plan("p", file)


def test_a_codec_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx265"})
    wrong = misfit(ShardSettings(codec="hevc"))
    assert wrong is not None
    assert wrong[0] == "codec"
    assert "no libx265" in wrong[1]
    assert misfit(ShardSettings()) is None


@pytest.mark.parametrize(("codec", "which"), [(name, which) for name in CODECS for which in (0, -1)])
def test_the_fastest_and_the_slowest_preset_encode(codec: Any, which: int, tmp_path: Path) -> None:
    source = Film(count=6).write(tmp_path / "source.mp4")
    settings = ShardSettings(codec=codec, preset=CODECS[codec].presets[which], crf=CODECS[codec].max_crf // 2)
    cut = cut_clip(str(source), span(times_of(source), 1, 5), settings)
    assert numbers(cut.mp4) == [1, 2, 3, 4]


def test_only_what_decides_the_bytes_is_in_the_key() -> None:
    base = encoding_key(ShardSettings())
    assert base == encoding_key(ShardSettings(crf=18, preset="veryfast", max_samples=7, stall_s=5.0))
    others = [
        ShardSettings(video="remux"),
        ShardSettings(codec="hevc"),
        ShardSettings(crf=19),
        ShardSettings(preset="fast"),
        ShardSettings(gop_s=2.0),
        ShardSettings(short_side_px=480),
        ShardSettings(fps=24.0),
        ShardSettings(audio="keep"),
    ]
    assert len({base, *map(encoding_key, others)}) == len(others) + 1
    assert encoding_key(ShardSettings(video="copy")) == encoding_key(ShardSettings(video="copy", crf=3))


def test_the_defaults_in_the_comments_of_pipelines_yaml_are_true() -> None:
    comments = re.findall(r"^#   ([a-z_]+): (\S+)", default_file().read_text(encoding="utf-8"), re.MULTILINE)
    settings = dataclasses.asdict(ShardSettings())
    assert {name: yaml.safe_load(value) for name, value in comments} == settings
    text = default_file().read_text(encoding="utf-8")
    for name, codec in CODECS.items():
        scale = f" of {codec.presets[-1]}..{codec.presets[0]}" if isinstance(codec.preset, int) else ""
        assert f"{codec.preset}{scale} ({name})" in text
        assert f"{codec.crf} ({name})" in text
