"""How much memory the decode pass holds over a long film: resident megabytes of its process, over time.

    python -m benchmarks.long_film [--json] [--minutes 120] [--fps 24] [--most-mb 700] [VIDEO]

Without a video it makes one of 640x360: two minutes of shots of many lengths, again and again. Ends with 1 if
the process held more than ``--most-mb`` at any moment.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import av
import psutil
from rich.console import Console
from rich.table import Table

from curation.clips import Range
from curation.config import load_plan
from curation.decode import Decode, Decoder
from curation.footage import Film, Shot, write_film
from curation.isolate import Isolated
from curation.sheets import take_sheets

_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_LENGTHS_S = (1.0, 2.5, 4.0, 0.5, 8.0, 3.0, 25.0, 6.0, 45.0, 2.0, 12.0, 11.0)  # two minutes in all
_BACKGROUNDS = ("desert", "blue sky", "green meadow")


class Sample(NamedTuple):
    """What was held at one moment of the pass."""

    t_s: float
    decoder_mb: float
    parent_mb: float


def make_film(folder: Path, minutes: float, fps: int) -> Path:
    """Encode two minutes once and repeat their packets, with times of their own, until the film is long enough."""
    shots = tuple(
        Shot(camera="pan_right", camera_speed=0.1 + 0.05 * (i % 4), seconds=s, background=_BACKGROUNDS[i % 3])
        for i, s in enumerate(_LENGTHS_S)
    )
    piece, path = folder / "piece.mp4", folder / "long.mp4"
    write_film(piece, Film(name=piece.name, shots=shots, width=640, height=360, fps=fps))
    with av.open(str(path), "w") as out:
        stream, shift = None, 0
        for _ in range(max(1, round(minutes * 60 / sum(_LENGTHS_S)))):
            with av.open(str(piece)) as source:
                given = source.streams.video[0]
                stream = stream or out.add_stream_from_template(given)
                length = given.duration or 0
                for packet in source.demux(given):
                    if packet.dts is None or packet.pts is None:  # the flush at the end
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    out.mux(packet)
            shift += length
    return path


def watch(path: Path, folder: Path) -> tuple[list[Sample], dict[str, float]]:
    """Decode a film in a process of its own; look at that process and at this one twice a second."""
    plan = load_plan("weight_free")
    settings = plan.decode.stage
    assert isinstance(settings, Decode)
    child = Isolated(Decoder(plan.decode, plan.dense), stall_s=settings.stall_s, memory_bytes=settings.memory_mb << 20)
    samples = []
    row = {"video": path.name, "video_id": "0" * 24}
    try:
        child.start()
        assert child.pid is not None
        decoder, parent = psutil.Process(child.pid), psutil.Process()
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(child.call, str(path), row, Range(), str(folder / "sheets.arrow"))
            while not done.done():
                held = (process.memory_info().rss / 2**20 for process in (decoder, parent))
                samples.append(Sample(time.monotonic() - started, *held))
                concurrent.futures.wait([done], timeout=0.5)
            piece = done.result()
    finally:
        child.close()
    sheets = take_sheets(folder / "sheets.arrow")
    facts = {
        "film_s": piece.end_s,
        "num_frames": piece.num_frames,
        "num_clips": piece.clips.num_rows,
        "num_sheet_frames": sheets.num_rows,
        "sheets_mb": sheets.nbytes / 2**20,
    }
    return samples, facts


def table_of(samples: list[Sample]) -> list[dict[str, float]]:
    """What was held when these shares of the pass were done, by wall time."""
    total_s = samples[-1].t_s
    rows = []
    for share in _SHARES:
        at = [sample for sample in samples if sample.t_s <= share * total_s][-1]
        rows.append({"share": share, **{name: round(value, 1) for name, value in at._asdict().items()}})
    return rows


def main() -> int:
    """Watch the pass over the given film, or over one made here."""
    parser = argparse.ArgumentParser(description="Memory of the decode pass over a long film.")
    parser.add_argument("video", nargs="?")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--most-mb", type=float, default=700.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(arguments.video) if arguments.video else make_film(folder, arguments.minutes, arguments.fps)
        samples, facts = watch(path, folder)
    rows, peak_mb = table_of(samples), max(sample.decoder_mb for sample in samples)
    if arguments.json:
        print(json.dumps({**facts, "peak_mb": round(peak_mb, 1), "over_time": rows}, indent=1))
    else:
        table = Table("share of the pass", "after s", "decoder MB", "parent MB", box=None)
        for row in rows:
            table.add_row(f"{row['share']:.0%}", *(f"{row[key]:.0f}" for key in ("t_s", "decoder_mb", "parent_mb")))
        console = Console()
        console.print(table)
        console.print(f"peak {peak_mb:.0f} MB", ", ".join(f"{name} {value:.0f}" for name, value in facts.items()))
    return int(peak_mb > arguments.most_mb)


if __name__ == "__main__":
    sys.exit(main())
