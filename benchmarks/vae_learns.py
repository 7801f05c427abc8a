"""How fast does the debug VAE learn? ``python -m benchmarks.vae_learns OUT --minutes 5``

Films of the generated world become shards, and the recipe ``vae-debug`` trains on them from random weights, a fifth of
the time on single frames. Prints one JSON line for each judgement: minutes of training, and PSNR, SSIM and flicker of
images and videos that were held out.

Measured on two cores of a CPU, one seed; dB of videos held out (of images), at minutes of training:

    --minutes 5     1.0: 19.5 (21.5)     2.7: 21.0 (21.3)     4.1: 23.0 (23.9)     5.0: 23.4 (24.5)
    --minutes 30    6.0: 22.9 (32.9)     7.6: 24.5 (27.2)    10.7: 26.0 (29.1)    15.2: 27.2 (31.0)

The second was ended after 16 minutes, at a learning rate that had hardly begun to fall. Videos before their stage are
what a VAE of single frames makes of them. Waiting for data took 0.3% of a step at the median, 2% at most.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from captioning.world import write_films
from curation.progress import Progress
from curation.run import run
from training.recipes import find_recipe
from training.vae.run import train_vae

_SIDE = 64
_PIPELINE = """
world:
  stages: [{decode: {detector: none, max_clip_s: 2, sheet_fps: 1, sheet_long_side_px: 64}}]
  shards: {crf: 12, preset: veryfast}
"""


def make_shards(folder: Path, films: int) -> Path:
    """Shards of so many films of 50 clips; those that are there stay."""
    write_films(folder / "films", films, seed=1, side=_SIDE, grain=False)
    (folder / "world.yaml").write_text(_PIPELINE)
    quiet = Progress(quiet=True)
    run("world", [str(folder / "films")], folder / "out", config=str(folder / "world.yaml"), progress=quiet)
    return folder / "out"


def curve(folder: Path) -> list[dict[str, float]]:
    """The judgements of all stages, with minutes of training in place of steps."""
    found, before_s = [], 0.0
    for stage in ("images", "videos"):
        rows = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
        judged = [row for row in rows if "seconds" in row]
        for row in judged:
            figures = {name: value for name, value in row.items() if name.startswith("held_out")}
            found.append({"stage": stage, "minutes": (before_s + row["seconds"]) / 60, **figures})
        before_s += judged[-1]["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for films, shards and the model")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--films", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    recipe = yaml.safe_load(find_recipe(Path("vae-debug")).read_text())
    recipe["data"].update(shards=str(make_shards(arguments.output, arguments.films)), workers=1)
    recipe["stages"][0]["training"] = {"minutes": arguments.minutes / 5}
    recipe["stages"][1]["training"] = {"minutes": arguments.minutes * 4 / 5}
    config = arguments.output / "vae.yaml"
    config.write_text(yaml.safe_dump(recipe))
    train_vae(config, arguments.output / "vae", say=lambda text: None)
    for row in curve(arguments.output / "vae"):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
