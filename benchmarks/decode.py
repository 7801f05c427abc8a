"""What the decode pass costs against decoding alone: CPU seconds, in turn, as ratios pair by pair.

    python -m benchmarks.decode [--json] [--pairs N] [--threads N] [--seconds N] [VIDEO ...]

The floor is ``ffmpeg -v error -i VIDEO -f null -`` with the same number of threads, where an ``ffmpeg`` is installed,
and PyAV reading every frame otherwise. Each video is repeated, packet by packet, until it is long enough to measure;
what starting a process costs is left out. Without videos it makes films of its own. ``exact`` decodes every frame in
full; ``default`` is what a run does. Beside the cost stand what the shortcuts change: cuts, and the largest difference
of any score.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import psutil
from av.video.frame import PictureType
from rich.console import Console
from rich.table import Table

from curation.clips import Range
from curation.config import load_plan
from curation.decode import Decode, Decoded, Decoder, join
from curation.footage import Film, Shot, write_film
from curation.isolate import Isolated
from curation.plan import Plan
from curation.sheets import take_sheets

MODES = ("exact", "default")
_CODECS = {"hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}


def plan_of(mode: str, threads: int) -> Plan:
    """The pipeline weight_free, with shortcuts or without, for so many decoder threads."""
    plan = load_plan("weight_free")
    stage = plan.decode.stage
    assert isinstance(stage, Decode)
    stage = dataclasses.replace(stage, threads=threads, exact=mode == "exact")
    return dataclasses.replace(plan, steps=(dataclasses.replace(plan.decode, stage=stage), *plan.steps[1:]))


def row_of(path: str) -> dict[str, Any]:
    """What the decode pass is told about a video."""
    return {"video": path, "video_id": "0" * 24}


class Pass:
    """The decode pass in a child process, as a run has it: shots, contact sheets, motion and quality of every clip."""

    def __init__(self, mode: str, threads: int) -> None:
        plan = plan_of(mode, threads)
        self._child = Isolated(Decoder(plan.decode, plan.dense, score_rejected=True), stall_s=60.0)
        self._child.start()
        self._mark = plan.decode.mark

    def __call__(self, path: str) -> Decoded:
        with tempfile.TemporaryDirectory() as folder:
            sheets = os.path.join(folder, "sheets.arrow")
            piece = self._child.call(path, row_of(path), Range(), sheets)
            return join(row_of(path), self._mark, [piece], [take_sheets(sheets)])

    def cpu_s(self, path: str) -> float:
        """User and system time that one video takes in both processes; nothing is started meanwhile."""
        before = self._spent_s()
        self(path)
        return self._spent_s() - before

    def _spent_s(self) -> float:
        times = psutil.Process(self._child.pid).cpu_times()
        return float(times.user + times.system) + time.process_time()

    def close(self) -> None:
        self._child.close()


def bare(path: str, threads: int) -> None:
    """Decode every frame with PyAV and drop it."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        for _ in container.decode(stream):
            pass


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a whole process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603 - our own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def floor_of(path: str, threads: int) -> list[str]:
    """The command that decodes and does nothing else."""
    if ffmpeg := shutil.which("ffmpeg"):
        return [ffmpeg, "-v", "error", "-threads", str(threads), "-i", path, "-f", "null", "-"]
    return [sys.executable, "-m", "benchmarks.decode", "--threads", str(threads), "--bare", path]


def measure(path: str, pairs: int, passes: dict[str, Pass], threads: int) -> dict[str, Any]:
    """Median CPU seconds and the median of the ratios to the floor, without what starting a process costs."""
    with tempfile.TemporaryDirectory() as folder:  # a film so short that starting is all it costs
        short = Path(folder) / "short.mp4"
        write_film(short, Film(name=short.name, shots=(Shot(seconds=0.1),), width=64, height=36))
        starting = floor_of(os.fspath(short), threads)
        startup = statistics.median(cpu_seconds(starting) for _ in range(5))
        for each in passes.values():
            each(os.fspath(short))
    seconds: dict[str, list[float]] = {name: [] for name in ("floor", *passes)}
    for _ in range(pairs):
        seconds["floor"].append(cpu_seconds(floor_of(path, threads)) - startup)
        for mode, each in passes.items():
            seconds[mode].append(each.cpu_s(path))
    floor = seconds["floor"]
    row: dict[str, Any] = {"floor_cpu_s": round(statistics.median(floor), 2)}
    for mode in passes:
        row[f"{mode}_cpu_s"] = round(statistics.median(seconds[mode]), 2)
        row[f"{mode}_ratio"] = round(statistics.median(a / b for a, b in zip(seconds[mode], floor, strict=True)), 3)
    return row


def differences(path: str, passes: dict[str, Pass]) -> dict[str, Any]:
    """What the default mode finds otherwise than the exact one."""
    exact, default = (passes[mode](path).clips.to_pylist() for mode in MODES)
    starts = [{row["start_s"] for row in rows} for rows in (exact, default)]
    worst, which = 0.0, ""
    by_span = {(row["start_s"], row["end_s"]): row for row in default}
    for row in exact:
        other = by_span.get((row["start_s"], row["end_s"]), {})
        for name, value in row.items():
            if isinstance(value, float) and isinstance(other.get(name), float) and not name.endswith("_s"):
                off = abs(other[name] - value)
                relative = off / abs(value) if value else 0.0
                if min(relative, off / 0.01 * 0.05) > worst:  # 5%, or 0.01 for what is near nought
                    worst, which = min(relative, off / 0.01 * 0.05), name
    return {"clips": len(exact), "other_cuts": len(starts[0] ^ starts[1]), "worst": round(worst, 4), "score": which}


def repeated(path: Path, target: Path, seconds: float) -> Path:
    """The video's packets over and over, with their times moved on, without sound, until it is so long."""
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        packets: list[Any] = [p for p in source.demux(stream) if p.dts is not None and p.pts is not None]
        time_base: Any = stream.time_base
        begin = min(p.dts for p in packets)
        length = max(p.pts + (p.duration or 0) for p in packets) - begin
        times = max(1, round(seconds / float(length * time_base)))
        with av.open(str(target), "w") as out:
            copy = out.add_stream_from_template(stream, opaque=True)
            for k in range(times):
                for packet in packets:
                    again = av.Packet(bytes(packet))
                    again.pts, again.dts = packet.pts + k * length, packet.dts + k * length
                    again.duration, again.time_base = packet.duration, time_base
                    again.is_keyframe, again.stream = packet.is_keyframe, copy
                    out.mux(again)
    return target


def own_films(folder: Path) -> list[Path]:
    """A film at 480p, 720p and 1080p, and the middle one in other codecs."""
    shots = tuple(
        Shot(camera="pan_right", camera_speed=0.1 + 0.1 * i, seconds=4.0, background=background)
        for i, background in enumerate(("desert", "green meadow", "blue sky"))
    )
    films = []
    for height in (480, 720, 1080):
        films.append(folder / f"h264_{height}p.mp4")
        write_film(films[-1], Film(name=films[-1].name, shots=shots, width=height * 16 // 9, height=height))
    for name, encoder in _CODECS.items():
        films.append(folder / f"{name}_720p.mkv")
        _transcode(films[1], films[-1], encoder)
    return films


def _transcode(source: Path, target: Path, encoder: str) -> None:
    with av.open(str(source)) as taken, av.open(str(target), "w") as out:
        rate = taken.streams.video[0].average_rate
        stream: Any = out.add_stream(encoder, rate=rate)
        stream.pix_fmt = "yuv420p"
        for frame in taken.decode(video=0):
            stream.width, stream.height = frame.width, frame.height
            frame.pict_type = PictureType.NONE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def main() -> None:
    """Measure the given videos, or films of our own."""
    arguments = _arguments()
    if arguments.bare:
        for path in arguments.videos:
            bare(path, arguments.threads)
        return
    rows: list[dict[str, Any]] = []
    passes = {mode: Pass(mode, arguments.threads) for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        videos = [Path(path) for path in arguments.videos] or own_films(Path(folder))
        for video in videos:
            target = Path(folder) / f"long_{len(rows)}.mkv"
            path = os.fspath(repeated(video, target, arguments.seconds))
            row = {"video": video.name, **measure(path, arguments.pairs, passes, arguments.threads)}
            rows.append({**row, **differences(os.fspath(video), passes)})
            target.unlink()
            print(json.dumps(rows[-1]), file=sys.stderr)
    for each in passes.values():
        each.close()
    if arguments.json:
        print(json.dumps({"floor": "ffmpeg" if shutil.which("ffmpeg") else "PyAV", "rows": rows}, indent=1))
        return
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=160).print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of the decode pass against decoding alone.")
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="decoder threads")
    parser.add_argument("--seconds", type=float, default=60.0, help="length that each video is brought to")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", action="store_true", help="decode and measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
