"""What the decode pass costs against decoding alone: CPU seconds, in turn, as a ratio pair by pair.

    python -m benchmarks.decode [--json] [--pairs N] [VIDEO ...]

Without videos it makes a film of its own. The ratio is what to compare; seconds depend on the machine and its load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
from rich.console import Console
from rich.table import Table

from curation.config import load_plan
from curation.decode import Decode, decode_video
from curation.footage import Film, Shot, write_film


def bare(path: str, threads: int) -> None:
    """Decode every frame and drop it."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        for _ in container.decode(stream):
            pass


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(path: str, pairs: int) -> dict[str, float | str]:
    """Median CPU seconds of both and the median ratio of ``pairs`` pairs after one that does not count."""
    plan = load_plan("weight_free")
    assert isinstance(plan.decode.stage, Decode)
    threads = plan.decode.stage.threads
    row = {"video": path, "video_id": "0" * 24}
    measured = []
    for _ in range(pairs + 1):
        decoding = cpu_seconds(lambda: bare(path, threads))
        everything = cpu_seconds(lambda: decode_video(path, row, plan.decode, plan.dense, True))
        measured.append((decoding, everything))
    counted = measured[1:]
    return {
        "video": Path(path).name,
        "decode_cpu_s": statistics.median(d for d, _ in counted),
        "pass_cpu_s": statistics.median(e for _, e in counted),
        "ratio": statistics.median(e / d for d, e in counted),
    }


def main() -> None:
    """Measure the given videos, or a film of 40 s at 1280x720."""
    parser = argparse.ArgumentParser(description="Cost of the decode pass against decoding alone.")
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = arguments.videos
        if not videos:
            shots = tuple(
                Shot(camera="pan_right", camera_speed=0.3, seconds=8.0, background=b) for b in ("desert",) * 5
            )
            film = Film(name="film.mp4", shots=shots, width=1280, height=720, fps=30)
            write_film(Path(folder) / film.name, film)
            videos = [str(Path(folder) / film.name)]
        rows = [compare(video, arguments.pairs) for video in videos]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("video", "decode CPU s", "whole pass CPU s", "ratio", box=None)
    for row in rows:
        table.add_row(
            str(row["video"]), f"{row['decode_cpu_s']:.2f}", f"{row['pass_cpu_s']:.2f}", f"{row['ratio']:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
