"""Whether scores are those of the content: the same clips in other sizes, frame rates, codecs and qualities.

    python -m benchmarks.encodings [--json] [--videos DIR] [--clips NAME ...] [--seconds 3] [--jobs N]

Each clip is encoded at two sizes, two frame rates, in four codecs at two qualities, 32 versions in all, and measured in
every one. The spread of a score is what lies between the lowest and the highest of its 32 values, as a share of their
median; it is good up to 5%, or up to 0.01. Ends with 1 if any is not. Without a folder of real clips (``--videos``, or
CUTROOM_TEST_VIDEOS) the films of the demo stand in for them.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from rich.console import Console
from rich.table import Table

from curation.decode import Decode, decode_video
from curation.footage import DEMO, write_film
from curation.plan import Step
from curation.stage import Filter
from filters import FILTERS

_RELATIVE, _ABSOLUTE = 0.05, 0.01
_DENSE = ("motion", "quality", "colour")
_COLUMNS = (
    *("motion_score", "motion_p90", "still_share", "camera_speed", "object_motion", "text_area", "overlay_text_area"),
    *("exposure", "clipped_share", "border_area", "colorfulness"),
)
# Seconds to start from, so that the stretch is one shot.
CLIPS = {
    "bbb_tree_hevc.mp4": 0.0,
    "city_pan_zoom.mp4": 0.0,
    "football_juggle.mp4": 0.0,
    "gopro_walk_hero7.mp4": 0.0,
    "intel_bottle_static.mp4": 0.0,
    "jupyter_screencast_60fps.mp4": 0.0,
    "laion_slides_talk_122s.mp4": 0.0,
    "sintel_trailer_52s.mp4": 36.0,
}
SIZES, RATES = (360, 1080), (24, 60)
# Options of a fast encoder, and how it is told a high and a low quality.
CODECS: dict[str, tuple[dict[str, str], tuple[int, int]]] = {
    "libx264": ({"preset": "veryfast"}, (18, 28)),
    "libx265": ({"preset": "ultrafast", "x265-params": "log-level=error:pools=1"}, (20, 30)),
    "libvpx-vp9": ({"deadline": "realtime", "cpu-used": "8", "b": "0"}, (24, 40)),
    "libsvtav1": ({"preset": "12", "svtav1-params": "lp=1"}, (24, 42)),
}


class Version(NamedTuple):
    """One way to encode a clip."""

    short_side_px: int
    fps: int
    codec: str
    crf: int


VERSIONS = [
    Version(size, fps, codec, crf)
    for size, fps, (codec, (_, crfs)) in itertools.product(SIZES, RATES, CODECS.items())
    for crf in crfs
]


def stretch(path: Path, start_s: float, seconds: float) -> list[VideoFrame]:
    """The frames of a stretch, from the one that is shown at its start."""
    frames: list[VideoFrame] = []
    with av.open(str(path)) as source:
        for frame in source.decode(video=0):
            time_s = frame.time or 0.0
            if time_s <= start_s:
                frames.clear()
            if time_s >= start_s + seconds:
                break
            frames.append(frame)
    return frames


def encode(frames: Sequence[VideoFrame], version: Version, seconds: float, path: Path) -> None:
    """Show the frames at their times, at a constant rate."""
    size = frames[0].width, frames[0].height
    scale = version.short_side_px / min(size)
    width, height = (round(side * scale / 2) * 2 for side in size)
    start_s = frames[0].time or 0.0
    times = np.array([(frame.time or 0.0) - start_s for frame in frames])
    with av.open(str(path), "w") as out:
        options, _ = CODECS[version.codec]
        stream = out.add_stream(version.codec, rate=version.fps, options={**options, "crf": str(version.crf)})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 0
        stream.thread_count = 1
        scaled: tuple[int, np.ndarray] = (-1, np.empty(0))
        for i in range(math.floor(seconds * version.fps)):
            shown = int(np.searchsorted(times, i / version.fps + 1e-6, "right")) - 1
            if shown != scaled[0]:
                scaled = shown, frames[shown].reformat(width, height, "yuv420p", interpolation="AREA").to_ndarray()
            frame = VideoFrame.from_ndarray(scaled[1], format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, version.fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def load(name: str) -> Filter:
    """A registered filter with its defaults."""
    module, _, attribute = FILTERS[name].partition(":")
    stage: Filter = getattr(importlib.import_module(module), attribute)()
    stage.setup()
    return stage


def scores(path: Path) -> dict[str, Any]:
    """All scores of a video taken as one clip."""
    first = Step(Decode(detector="none", max_clip_s=None), "decode@0", {})
    dense = [Step(load(name), f"{name}@0", {}) for name in _DENSE]
    decoded = decode_video(str(path), {"video": path.name, "video_id": "0" * 24}, first, dense, True)
    [row] = decoded.clips.to_pylist()
    text = load("text")
    sheet = [{"t_s": cell["t_s"], "jpeg": cell["jpeg"]} for cell in decoded.frames.to_pylist()]
    return {**row, **text.score(*text.frames._from_sheet(sheet))}


def measure(path: Path, start_s: float, seconds: float) -> dict[str, Any]:
    """One clip: for each score how far its values lie apart, the values, and the labels that were given."""
    frames = stretch(path, start_s, seconds)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for version in VERSIONS:
            target = Path(folder) / "version.mkv"
            encode(frames, version, seconds, target)
            rows.append(scores(target))
    spreads = {column: spread([row[column] for row in rows]) for column in _COLUMNS}
    labels = sorted({" ".join(sorted(row["camera_motion"] or ["unknown"])) for row in rows})
    values = {column: [row[column] for row in rows] for column in (*_COLUMNS, "camera_motion")}
    return {"clip": path.name, "spreads": spreads, "camera_motion": labels, "values": values}


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """How far values lie apart; some known and some not is never good."""
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        return {"median": None, "spread": None, "good": len(known) == 0}
    low, median, high = float(known.min()), float(np.median(known)), float(known.max())
    good = high - low <= max(_ABSOLUTE, _RELATIVE * abs(median))
    return {"median": round(median, 4), "spread": round(high - low, 4), "good": good}


def main() -> None:
    """Measure all clips, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encodings")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--videos", type=Path, default=os.environ.get("CUTROOM_TEST_VIDEOS"))
    parser.add_argument("--clips", nargs="*", help="names in the folder")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, help="processes; one per CPU")
    options = parser.parse_args()
    os.environ.setdefault("SVT_LOG", "1")  # else SVT-AV1 tells about itself on every version
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(options.jobs) as pool:
        folder = Path(options.videos or scratch)
        starts = CLIPS if options.videos else {film.name: 0.0 for film in DEMO if film.shots[0].seconds > 2.9}
        if not options.videos:
            for film in DEMO:
                write_film(folder / film.name, film)
        names = options.clips or list(starts)
        work = [(folder / name, starts.get(name, 0.0), options.seconds) for name in names]
        rows = list(pool.map(measure, *zip(*work, strict=True)))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        say(rows)
    sys.exit(0 if all(s["good"] for row in rows for s in row["spreads"].values()) else 1)


def say(rows: list[dict[str, Any]]) -> None:
    """One row per clip: for each score the median and how far apart the versions lie."""
    table = Table("clip", *_COLUMNS, "camera_motion", title=f"median ± spread over {len(VERSIONS)} versions", box=None)
    for row in rows:
        cells = [
            "unknown" if s["median"] is None else f"{s['median']:.3f}\n{'' if s['good'] else '! '}{s['spread']:.3f}"
            for s in row["spreads"].values()
        ]
        table.add_row(row["clip"], *cells, "\n".join(row["camera_motion"]))
    Console(width=200, highlight=False).print(table)


if __name__ == "__main__":
    main()
