"""What each filter costs, in CPU seconds per minute of 720p, and what the pre-check before reading text loses.

    python -m benchmarks.filters [--json] [--pairs N] [--videos FOLDER]

Costs are those of scoring alone, in one thread, on films that the benchmark draws itself. The whole decode pass with
all filters that need no model is compared with bare decoding of the same films, in turn. ``text`` is measured with its
pre-check and without, on clips with text drawn in and, where ``--videos`` (or CUTROOM_TEST_VIDEOS) names a folder with
an INDEX.csv, on real ones: the share of frames with text in which text was found, and the share of the words that the
index lists (three letters and longer) which were read.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.lettered import OVERLAYS, SCENE, clip
from curation.config import load_plan
from curation.decode import Decoded, decode_video
from curation.footage import DEMO, write_film
from curation.frames import SHEET
from curation.plan import Step
from curation.stage import Filter
from filters import FILTERS
from filters.text import Text, to_grey

Row = dict[str, Any]
Footage = tuple[list[tuple[np.ndarray, np.ndarray]], set[str]]  # frames T H W 3 and times of clips; words in them

_MOST_CLIPS, _MOST_FRAMES = 3, 12  # of each real video: slides would outweigh all others
REAL = ("psd_testvideo.mp4", "football_juggle.mp4")  # H.264, 720p
FILMS = ("hard_cuts.mp4", "pan.mp4", "large_text.mp4", "letterbox.mp4")


def filters() -> dict[str, Filter]:
    """The registered filters that bring all they need, with their defaults, set up."""
    found = {}
    for name, place in FILTERS.items():
        module, _, attribute = place.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
        if issubclass(kind, Filter) and "torch" not in kind.packages:  # those need weights
            found[name] = kind()
            found[name].setup()
    return found


def decode(path: Path, *dense: Filter) -> Decoded:
    """The clips of a video, cut where pictures cut, with the scores of filters on decoded frames."""
    steps = [Step(stage, stage.name, {}) for stage in dense]
    plan = load_plan("weight_free")
    return decode_video(str(path), {"video": path.name, "video_id": path.name}, plan.decode, steps, True)


def sheets(decoded: Decoded) -> list[list[Row]]:
    """The contact sheet of each clip: frames with ``t_s`` and ``jpeg``."""
    by_clip: dict[str, list[Row]] = {}
    for row in decoded.frames.to_pylist():
        by_clip.setdefault(row["clip_id"], []).append(row)
    return list(by_clip.values())


def cost(stage: Filter, films: list[Path]) -> float:
    """CPU seconds per minute of footage that ``stage`` spends on scoring."""
    spent_s, footage_s, score = 0.0, 0.0, stage.score

    def timed(frames: np.ndarray, times: np.ndarray) -> Any:
        nonlocal spent_s
        before = time.process_time()
        result = score(frames, times)
        spent_s += time.process_time() - before
        return result

    stage.score = timed  # type: ignore[method-assign]
    for film in films:
        decoded = decode(film, *([stage] if stage.frames.fps is not None else []))
        footage_s += sum(decoded.clips["duration_s"].to_pylist())
        if stage.frames.fps is None:
            for sheet in sheets(decoded):
                timed(*unpack(stage, sheet))
    return 60 * spent_s / footage_s


def bare(film: Path) -> int:
    """Decode a film in one thread and do nothing with the frames; return their number."""
    with av.open(str(film)) as source:
        source.streams.video[0].thread_count = 1
        return sum(1 for _ in source.decode(video=0))


def whole(stages: list[Filter], films: list[Path], pairs: int) -> Row:
    """CPU seconds of the decode pass with filters on decoded frames, as a multiple of bare decoding."""
    dense, spent = [stage for stage in stages if stage.frames.fps is not None], list[tuple[float, float]]()
    for _ in range(pairs):
        times = [time.process_time()]
        for film in films:
            decode(film, *dense)
        times.append(time.process_time())
        for film in films:
            bare(film)
        times.append(time.process_time())
        spent.append((times[1] - times[0], times[2] - times[1]))
    return {
        "filters": ", ".join(stage.name for stage in dense),
        "cpu_s": round(statistics.median(full for full, _ in spent), 2),
        "of bare decoding": round(statistics.median(full / decoding for full, decoding in spent), 2),
    }


def unpack(stage: Filter, sheet: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """What a filter sees of a contact sheet: frames and times."""
    return stage.frames.unpack(pa.scalar([{"t_s": row["t_s"], "jpeg": row["jpeg"]} for row in sheet], SHEET))


def drawn(count: int = 2) -> Iterator[Footage]:
    """Generated clips of every kind, all with text; their words are not asked for."""
    for kind in (*OVERLAYS, *SCENE):
        for seed in range(count):
            yield [(clip(np.random.default_rng([100 + seed, len(kind)]), kind, count=6), np.arange(6) / 2)], set()


def real(folder: Path, stage: Filter) -> Iterator[Footage]:
    """The contact sheets of real videos that show text, with the words that they show."""
    with (folder / "INDEX.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["text_on_screen"]]
    for row in rows:
        clips = [unpack(stage, sheet[:_MOST_FRAMES]) for sheet in sheets(decode(folder / row["file"]))]
        yield clips[:_MOST_CLIPS], words(row["text_on_screen"])


def words(text: str) -> set[str]:
    """The words of a text that are worth looking for."""
    return {word for word in re.split(r"\W+", text.casefold()) if len(word) >= 3}


def reading(footage: list[Footage]) -> list[Row]:
    """Cost and recall of ``text`` with its pre-check and without."""
    rows, with_text = [], 0
    for precheck in (False, True):
        stage = Text(precheck=precheck)
        stage.setup()
        started_s, num_frames, num_found, num_words, num_read = time.process_time(), 0, 0, 0, 0
        for clips, asked in footage:
            found = [lines for frames, times in clips for lines in stage.find(frames, to_grey(frames), times)]
            said = "".join(line.string.casefold() for lines in found for line in lines)
            num_frames, num_found = num_frames + len(found), num_found + sum(map(bool, found))
            num_words, num_read = num_words + len(asked), num_read + sum(word in said for word in asked)
        spent_s = time.process_time() - started_s
        with_text = with_text or num_found
        rows.append(
            {
                "precheck": precheck,
                "cpu_s_per_min": round(spent_s / num_frames * 120, 2),  # contact sheets hold two frames a second
                "frames": num_frames,
                "with_text": num_found,
                "recall": round(num_found / max(1, with_text), 4),  # of the frames in which reading all finds text
                "words_read": round(num_read / num_words, 4) if num_words else None,
            }
        )
    return rows


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.filters")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--videos", type=Path, default=os.environ.get("CUTROOM_TEST_VIDEOS"))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        films = [dataclasses.replace(film, width=1280, height=720) for film in DEMO if film.name in FILMS]
        for film in films:
            write_film(Path(folder) / film.name, film)
        paths, stages = [Path(folder) / film.name for film in films], filters()
        footage = {"drawn": paths}
        if options.videos is not None:
            footage["real"] = [Path(options.videos) / name for name in REAL]
        together = [{"footage": name, **whole(list(stages.values()), footage[name], options.pairs)} for name in footage]
        costs = [{"filter": name, "cpu_s_per_min": round(cost(stages[name], paths), 3)} for name in stages]
    results: dict[str, list[Row]] = {"cost": costs, "together": together, "text, drawn": reading(list(drawn()))}
    if options.videos is not None:
        results["text, real"] = reading(list(real(Path(options.videos), Text())))
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for title, rows in results.items():
        table = Table(*rows[0], title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
