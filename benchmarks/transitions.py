"""Films for measuring shot detection, whose every cut, transition and distraction is known to the frame.

Each corpus is a list of ``Film``; everything follows from the seed (0 is for tuning, others are held out):

    from benchmarks.transitions import cache_frames, corpus, frames_of, real_corpus
    films = corpus("/tmp/films", seed=0)             # painted scenes: joins, then distractors without any cut
    films += real_corpus("/tmp/films", "videos")     # pieces of real clips without cuts, joined the same way
    cache_frames(films)                              # optional: decode everything now, in parallel
    pictures = frames_of(films[0])                   # N H W 3 BGR uint8, decoded once, then mapped from a file
    films[0].transitions                             # Transition(kind, first, end, core_first, core_end)
    from benchmarks.annotated import annotated
    films += annotated(Path("videos"), Path("/tmp/films"))   # real clips with cuts noted in INDEX.csv

Films that lie in the folder already are not made again. To try a detector on cached frames:

    from benchmarks.shots import evaluate
    evaluate(films, lambda film: my_clips(frames_of(film)), verbose=True)   # clips: [(first, end)], half open frames
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av import VideoFrame

from benchmarks.content import REAL_SIZE, Plan, content, overlays
from benchmarks.distractors import DISTRACTORS
from benchmarks.joins import FADES, GRADUAL, PUSHES, Card, Shown, Transition, join_takes, transitions_of
from benchmarks.worlds import Size
from curation.video import Video

VERSION = 3  # raise it when the same seed gives other films
SIZES: tuple[Size, ...] = ((320, 180), (426, 240), (640, 360))
# How many films of each theme, and how many of the eight joins in each are hard cuts.
THEMES = {
    "plain": (18, 4),
    "dark": (5, 5),
    "similar": (5, 5),  # the same kind of place in the same colours
    "reframed": (4, 5),  # the same place from elsewhere
    "moving": (5, 4),  # fast pans on both sides
    "short": (3, 8),  # shots of 8 to 15 frames
    "blank": (5, 4),  # from and to black, white and titles
}
_DECK = ("dissolve",) * 10 + FADES * 3 + tuple(kind for kind in GRADUAL if kind.startswith("wipe")) + PUSHES
_UNREAL = {"synthetic", "broken", "screencast", "slides", "no motion", "motion graphics", "heavy text", "short"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """A film file and all that is true of it. Frames are counted from 0; the rate is constant."""

    path: Path
    fps: float
    num_frames: int
    theme: str  # of its shots, or the kind of distractor
    transitions: tuple[Transition, ...] = ()
    blank: tuple[tuple[int, int], ...] = ()  # frames that show a black, white or title card, half open
    unsure: tuple[tuple[int, int], ...] = ()  # what is reported here is not judged
    times: tuple[float, ...] = ()  # of its frames in seconds; empty: i / fps
    notes: Path | None = None  # a folder for what is found out about it; None: where it lies

    @property
    def name(self) -> str:
        return self.path.stem

    def note(self, suffix: str) -> Path:
        """Where to keep something that was found out about the film."""
        return (self.notes or self.path.parent) / f"{self.name}{suffix}"

    def frame_at(self, t_s: float) -> int:
        """The index of the frame that begins nearest to a time; the number of frames for the end of the film."""
        if not self.times:
            return round(t_s * self.fps)
        return self.num_frames if t_s > self.times[-1] + 1e-3 else int(np.argmin(np.abs(np.array(self.times) - t_s)))

    @property
    def distractor(self) -> bool:
        return not self.transitions

    @property
    def minutes(self) -> float:
        return self.num_frames / self.fps / 60


def corpus(folder: str | os.PathLike[str], *, seed: int = 0, jobs: int | None = None) -> list[Film]:
    """Painted films: about 360 transitions, about half of them hard, and 21 minutes of distractors.

    Args:
        folder: where the films lie or are to be written, under ``seed<N>``.
        jobs: processes; None is one per CPU.
    """
    random, place, plans = np.random.default_rng(seed), Path(folder) / f"seed{seed}", list[Plan]()
    deck = _shuffled(random)
    for theme, (count, num_hard) in THEMES.items():
        for i in range(count):
            kinds = ["cut"] * num_hard
            for _ in range(8 - num_hard):
                allowed = (kind for kind in deck if theme != "dark" or kind not in FADES)
                kinds.append("fade" if theme == "blank" else next(allowed))
            shuffled = tuple(str(kind) for kind in random.permutation(kinds))
            plans.append(Plan(path=place / f"{theme}_{i}.mp4", theme=theme, seed=(seed, len(plans)), kinds=shuffled))
    for kind, i in itertools.product(DISTRACTORS, range(3)):
        path = place / f"no_cut_{kind.replace(' ', '_')}_{i}.mp4"
        plans.append(Plan(path=path, theme=kind, seed=(seed, len(plans))))
    return _make(plans, jobs)


def real_corpus(
    folder: str | os.PathLike[str], videos: str | os.PathLike[str], *, seed: int = 0, jobs: int | None = None
) -> list[Film]:
    """Pieces of real clips that hold no cut, joined the same way: 16 films with 8 transitions each.

    Args:
        videos: a folder of clips with INDEX.csv (columns file, hard_cuts, gradual_transitions, tags, frames, vfr,
            rotation), such as ``CUTROOM_TEST_VIDEOS`` names.
    """
    random, place, plans = np.random.default_rng((seed, 1)), Path(folder) / f"real{seed}", list[Plan]()
    deck, sources = _shuffled(random), uncut(Path(videos))
    for i in range(16):
        kinds = random.permutation(["cut"] * 4 + [next(deck) for _ in range(4)])
        chosen = [sources[k] for k in random.permutation(len(sources))[:9]]
        plans.append(
            Plan(
                path=place / f"real_{i}.mp4",
                theme="real",
                seed=(seed, 1, i),
                kinds=tuple(str(kind) for kind in kinds),
                sources=tuple(chosen),
            )
        )
    return _make(plans, jobs)


def uncut(videos: Path) -> list[tuple[str, int]]:
    """The clips that INDEX.csv says hold no cut, no transition and real motion, each once, with their frame counts."""
    with (videos / "INDEX.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        tags = set(row["tags"].split(";"))
        known = row["hard_cuts"] == "none" and not row["gradual_transitions"] and int(row["frames"] or 0) >= 75
        twin = ("codec triple" in tags and row["codec"] != "h264") or row["file"].endswith("_distorted.mp4")
        if known and not twin and row["vfr"] != "yes" and row["rotation"] in ("", "0") and not tags & _UNREAL:
            found.append((str(videos / row["file"]), int(row["frames"])))
    return found


def cache_frames(films: Sequence[Film], *, long_side_px: int = 256, jobs: int | None = None) -> None:
    """Decode all films now, so that ``frames_of`` only maps files (at 256 px 110 kB a frame: 6 GB for a corpus)."""
    with ProcessPoolExecutor(jobs) as pool:
        list(pool.map(_cache, films, itertools.repeat(long_side_px)))


def frames_of(film: Film, long_side_px: int = 256) -> np.ndarray:
    """All frames of a film, N H W 3 BGR uint8, as the decode pass sees them; mapped from a file made once beside it."""
    _cache(film, long_side_px)
    return np.asarray(np.load(film.note(f".{long_side_px}.npy"), mmap_mode="r"))


def _cache(film: Film, long_side_px: int) -> None:
    cache = film.note(f".{long_side_px}.npy")
    if not cache.exists():
        with Video(film.path) as video:
            pictures = [frame.picture(*video.size(long_side_px)) for frame in video.frames()]
        aside = cache.with_name(f".{cache.name}")
        np.save(aside, np.stack(pictures))
        os.replace(aside, cache)


def make_film(plan: Plan) -> Film:
    """Write the film of a plan, or read its truth where it lies already."""
    note = plan.path.with_suffix(".json")
    if not note.exists() or json.loads(note.read_text())["version"] != VERSION:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        for stale in plan.path.parent.glob(
            f"{plan.path.stem}.*"
        ):  # of another version, and what was found out about it
            stale.unlink()
        cv2.setNumThreads(1)
        random = np.random.default_rng(plan.seed)
        fps, crf = int(random.choice([24, 25, 30])), int(random.integers(17, 31))
        preset = str(random.choice(["ultrafast", "superfast", "veryfast"], p=(0.3, 0.5, 0.2)))
        size = REAL_SIZE if plan.sources else SIZES[random.choice(3, p=(0.76, 0.2, 0.04))]
        takes, joins = content(plan, random, size, fps)
        over = overlays(random, size) if plan.kinds else []
        mixed = encode(plan.path, join_takes(takes, joins, over), fps=fps, crf=crf, preset=preset)
        found = transitions_of([len(take) for take in takes], joins, mixed)
        facts = {
            "version": VERSION,
            "fps": fps,
            "num_frames": len(mixed),
            "theme": plan.theme,
            "transitions": [dataclasses.asdict(transition) for transition in found],
            "blank": _blanks(takes, found, len(mixed)),
        }
        note.write_text(json.dumps(facts, indent=1))
    return read_film(plan.path)


def read_film(path: Path) -> Film:
    """A film from its file and the truth beside it."""
    facts = json.loads(path.with_suffix(".json").read_text())
    return Film(
        path=path,
        fps=facts["fps"],
        num_frames=facts["num_frames"],
        theme=facts["theme"],
        transitions=tuple(Transition(**transition) for transition in facts["transitions"]),
        blank=tuple((first, end) for first, end in facts["blank"]),
    )


def encode(
    path: Path, frames: Iterator[tuple[np.ndarray, float]], *, fps: int, crf: int, preset: str = "superfast"
) -> list[float]:
    """Write frames as H.264; return how much each is mixed."""
    mixed: list[float] = []
    aside = path.with_name(f".{path.name}")
    with av.open(str(aside), "w", format="mp4") as out:
        stream = out.add_stream(
            "libx264",
            rate=fps,
            options={"preset": preset, "crf": str(crf), "threads": "1", "x264-params": "cpu-independent=1"},
        )
        stream.pix_fmt = "yuv420p"
        for i, (picture, share) in enumerate(frames):
            if not i:
                stream.width, stream.height = picture.shape[1], picture.shape[0]
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            out.mux(stream.encode(frame))
            mixed.append(share)
        out.mux(stream.encode(None))
    os.replace(aside, path)
    return mixed


def _make(plans: list[Plan], jobs: int | None) -> list[Film]:
    if jobs == 1:
        return [make_film(plan) for plan in plans]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(make_film, plans))


def _shuffled(random: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (str(kind) for kind in random.permutation(_DECK))


def _blanks(takes: list[Shown], transitions: list[Transition], num_frames: int) -> list[tuple[int, int]]:
    starts = [0, *(transition.end for transition in transitions)]
    ends = [*(transition.first for transition in transitions), num_frames]
    return [(s, e) for take, s, e in zip(takes, starts, ends, strict=True) if isinstance(take, Card)]
