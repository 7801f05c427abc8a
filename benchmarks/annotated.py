"""Real clips with cuts annotated in words: INDEX.csv, columns file, hard_cuts and gradual_transitions."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

from benchmarks.joins import Transition
from benchmarks.transitions import Film
from curation.errors import VideoError
from curation.video import Video

_GRADUAL = re.compile(r"(fade-in|fade-out|dissolve|fade to black|fade to logo)\D{0,16}?(\d+)-(\d+)")
_UNSURE = re.compile(r"\b(text|title|logo|caption|fade|digit|near black)")
_SPAN = re.compile(r"(?<![>\d.])(\d+)(?:-(\d+))?(?![\d.]|->| ?s\b)")
_SLACK = 12  # frames around something that is noted, but whose extent is not known


def annotated(videos: Path, cache: Path) -> list[Film]:
    """The clips of INDEX.csv that can be decoded, with what is noted of them; frame times are kept in ``cache``."""
    with (videos / "INDEX.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["hard_cuts"]]
    cache = cache / "annotated"
    cache.mkdir(parents=True, exist_ok=True)
    note = cache / "times.json"
    times: dict[str, list[float]] = json.loads(note.read_text()) if note.exists() else {}
    for row in rows:
        if row["file"] not in times:
            times[row["file"]] = _times(videos / row["file"])
    note.write_text(json.dumps(times))
    return [
        dataclasses.replace(
            _film(videos / row["file"], times[row["file"]], row["hard_cuts"], row["gradual_transitions"]), notes=cache
        )
        for row in rows
        if len(times[row["file"]]) > 1
    ]


def _times(path: Path) -> list[float]:
    try:
        with Video(path) as video:
            return [frame.t_s for frame in video.frames()]
    except VideoError:
        return []


def _film(path: Path, times: list[float], hard: str, gradual: str) -> Film:
    count, minutes = len(times), (times[-1] - times[0]) / 60
    cuts = [int(cut.split()[0]) for cut in hard.split(";") if re.match(r"\s*\d", cut) and "stream 3" not in cut]
    found = [Transition(kind="cut", first=c, end=c, core_first=c, core_end=c) for c in cuts]
    softs, unsure = read_gradual(gradual, count)
    return Film(
        path=path,
        fps=(count - 1) / max(minutes * 60, 1e-3),
        num_frames=count,
        theme="annotated",
        transitions=tuple(sorted([*found, *softs], key=lambda transition: transition.first)),
        unsure=tuple(unsure),
        times=tuple(times),
    )


def read_gradual(text: str, num_frames: int) -> tuple[list[Transition], list[tuple[int, int]]]:
    """Transitions with a range of frames, and places of which something is noted that is not clearly one.

    The ranges were read by eye: the core leaves out a fifth at both ends.
    """
    found: list[Transition] = []
    unsure: list[tuple[int, int]] = []
    if "ramp" in text:
        return found, [(0, num_frames)]
    for part in re.split(r";|\. |approximate:", text.replace("in stream 0;", "in stream 0; stream 3")):
        match = _GRADUAL.search(part)
        if match:
            first, end = int(match[2]), min(int(match[3]) + 1, num_frames)
            rim = max(2, (end - first) // 5)
            found.append(Transition(kind=match[1], first=first, end=end, core_first=first + rim, core_end=end - rim))
        elif _UNSURE.search(part):
            spans = [(int(a), int(b or a)) for a, b in _SPAN.findall(part)]
            unsure += [(max(0, a - _SLACK), min(num_frames, b + _SLACK)) for a, b in spans if a < num_frames]
    return found, unsure
