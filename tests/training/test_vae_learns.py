"""The debug size learns, from random weights and in about a minute on a quiet core, what the demo's shards show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from captioning.world import write_films
from curation.run import run
from training.recipes import find_recipe
from training.vae.run import train_vae

_PIPELINE = """
world:
  stages: [{decode: {detector: none, max_clip_s: 2, sheet_fps: 1, sheet_long_side_px: 64}}]
  shards: {crf: 12, preset: veryfast}
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_held_out_videos_and_images_gain_eight_decibels(tmp_path: Path) -> None:
    write_films(tmp_path / "films", 16, seed=1, side=64, grain=False)
    (tmp_path / "world.yaml").write_text(_PIPELINE)
    run("world", [str(tmp_path / "films")], tmp_path / "out", config=str(tmp_path / "world.yaml"), engine="local")
    recipe = yaml.safe_load(find_recipe(Path("vae-debug")).read_text())
    recipe["data"].update(shards=str(tmp_path / "out"), held_out=0.1, workers=1)
    del recipe["training"]["minutes"]  # steps, so that a loaded machine changes nothing
    recipe["stages"][0]["training"], recipe["stages"][1]["training"] = {"steps": 230}, {"steps": 320}
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(recipe))
    train_vae(tmp_path / "vae.yaml", tmp_path / "vae", say=lambda text: None)
    rows = [
        json.loads(line)
        for stage in ("images", "videos")
        for line in (tmp_path / "vae" / stage / "metrics.jsonl").read_text().splitlines()
    ]
    images = [row["held_out_images_psnr"] for row in rows if "held_out_images_psnr" in row]
    videos = [row["held_out_videos_psnr"] for row in rows if "held_out_videos_psnr" in row]
    assert images[-1] - images[0] >= 8, images
    assert videos[-1] - images[0] >= 8, videos  # before the first step nothing was told from anything
    assert videos[-1] - videos[0] >= 2, videos  # what single frames cannot teach
    waits = [row["data_wait"] for row in rows if "data_wait" in row]
    assert sorted(waits)[len(waits) // 2] <= 0.05
