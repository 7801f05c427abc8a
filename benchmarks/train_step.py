"""What a training step takes in time and memory, as the trainer itself measures it: the VAE's or the transformer's.

    python -m benchmarks.train_step [--model vae|transformer] [--size NAME] [--frames 17] [--height 256] [--width 256]
                                    [--batch 1] [--steps 10] [--only WAY] [--set NAME=VALUE]...

On made-up clips and random weights the model learns for a few steps: the VAE without LPIPS and discriminator (whose
weights would have to be fetched, and which play later), the transformer on latents of a small VAE, which have the shape
of any other's; ``--set packing.tokens=40000`` packs, ``--set model.lora={rank: 64}`` learns additions only. As it is,
with activations computed again (``save_memory``), compiled, and both; each in a process of its own, on the GPU where
there is one. A line of JSON each, of the last step: seconds, share of the processor's peak (MFU, where the peak is
known), and peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.loader import make_shards
from training.vae.config import size
from training.vae.model import VAE

_CLIPS = 32
_LENGTH = 97  # frames of the clips that are made
_KEPT = ("step_s", "samples_per_s", "mfu", "tflop_per_s", "peak_memory_gb", "data_wait")
_WAYS = ("plain", "saving", "compiled", "compiled saving")
_SIZES = {"vae": "full", "transformer": "2b"}


def write_config(folder: Path, args: argparse.Namespace) -> Path:
    """The training, with what it begins with."""
    bucket = {"frames": args.frames, "height": args.height, "width": args.width, "batch_size": args.batch}
    parts: dict[str, Any] = {
        "data": {"shards": str(folder), "buckets": [bucket], "workers": 1, "images": 0.0, "held_out": 0.0},
        "model": {"size": args.size or _SIZES[args.model]},
        "optimiser": {},
        "training": {"steps": args.steps, "log_every": 1},
    }
    if args.model == "vae":
        parts["loss"] = {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.0}}
    else:
        VAE(size("debug")).save_pretrained(folder / "vae")
        parts |= {"vae": {"start": str(folder / "vae")}, "text": {"start": "words"}, "judge": {"shown": 0}}
        parts["cache"] = str(folder / "cache")
    file = folder / "training.yaml"
    file.write_text(yaml.safe_dump(parts))
    return file


def measure(kind: str, file: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Train for a few steps; the figures of the last one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "curation.cli", "train", kind, str(file), "--output", folder]
        for change in changes:
            command += ["--set", change]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
        figures = Path(folder) / "metrics.jsonl"
        lines = [json.loads(line) for line in figures.read_text().splitlines()] if figures.is_file() else []
        if not (rows := [line for line in lines if "step_s" in line]):
            return {"failed": (done.stderr.strip().splitlines() or ["no step was made"])[-1]}
        return {name: rows[-1].get(name) for name in _KEPT}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=_SIZES, default="vae")
    parser.add_argument("--size", help="vae: full; transformer: 2b")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", choices=_WAYS)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args(arguments)
    if args.frames > _LENGTH:
        parser.error(f"--frames {args.frames}: the clips have {_LENGTH}")
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), _CLIPS, (args.width, args.height), "h264")
        file = write_config(Path(folder), args)
        for name in [args.only] if args.only else _WAYS:
            how = {"compile": "compiled" in name, "save_memory": "saving" in name}
            changes = [f"training.{setting}={str(value).lower()}" for setting, value in how.items()]
            print(json.dumps({**how, **measure(args.model, file, [*args.set, *changes])}), flush=True)


if __name__ == "__main__":
    main()
