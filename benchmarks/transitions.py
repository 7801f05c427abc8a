"""Films for measuring shot detection, whose every cut, transition and distraction is known to the frame.

Three corpora, each a list of ``Film``; everything follows from the seed (0 is for tuning, others are held out):

    from benchmarks.transitions import corpus, frames_of, real_corpus
    films = corpus("/tmp/films", seed=0)             # painted scenes: joins, then distractors without any cut
    films += real_corpus("/tmp/films", "videos")     # pieces of real clips without cuts, joined the same way
    pictures = frames_of(films[0])                   # N H W 3 BGR uint8, decoded once, then mapped from a file
    films[0].transitions                             # Transition(kind, first, end, core_first, core_end)

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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av import VideoFrame

from benchmarks.distractors import DISTRACTORS
from benchmarks.joins import FADES, GRADUAL, PUSHES, Card, Join, Shown, Transition, join_takes, transitions_of
from benchmarks.scenes import TEXTURES, WORDS, Effect, Size, Take, make_take, palette, roam
from curation.video import Video

VERSION = 1  # raise it when the same seed gives other films
SIZES: tuple[Size, ...] = ((320, 180), (426, 240), (640, 360))
REAL_SIZE: Size = (384, 216)
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

    @property
    def name(self) -> str:
        return self.path.stem

    def frame_at(self, t_s: float) -> int:
        """The index of the frame that begins nearest to a time; the number of frames for the end of the film."""
        if not self.times:
            return round(t_s * self.fps)
        step = (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)
        return int(np.argmin(np.abs(np.array([*self.times, self.times[-1] + step]) - t_s)))

    @property
    def distractor(self) -> bool:
        return not self.transitions

    @property
    def minutes(self) -> float:
        return self.num_frames / self.fps / 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a film is made from."""

    path: Path
    theme: str
    seed: tuple[int, ...]
    kinds: tuple[str, ...] = ()  # of its joins; none: a distractor
    sources: tuple[tuple[str, int], ...] = ()  # real clips and how many frames they have; none: painted
    seconds: float = 21.0  # of a distractor


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


def frames_of(film: Film, long_side_px: int = 256) -> np.ndarray:
    """All frames of a film, N H W 3 BGR uint8, as the decode pass sees them; mapped from a file made once beside it."""
    cache = film.path.with_suffix(f".{long_side_px}.npy")
    if not cache.exists():
        with Video(film.path) as video:
            pictures = [frame.picture(*video.size(long_side_px)) for frame in video.frames()]
        aside = cache.with_name(f".{cache.name}")
        np.save(aside, np.stack(pictures))
        os.replace(aside, cache)
    return np.asarray(np.load(cache, mmap_mode="r"))


def make_film(plan: Plan) -> Film:
    """Write the film of a plan, or read its truth where it lies already."""
    note = plan.path.with_suffix(".json")
    if not note.exists() or json.loads(note.read_text())["version"] != VERSION:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        cv2.setNumThreads(1)
        random = np.random.default_rng(plan.seed)
        fps, crf = int(random.choice([24, 25, 30])), int(random.integers(17, 31))
        size = REAL_SIZE if plan.sources else SIZES[random.choice(3, p=(0.7, 0.22, 0.08))]
        takes, joins = _content(plan, random, size, fps)
        overlays = _overlays(random, size) if plan.kinds else []
        mixed = encode(plan.path, join_takes(takes, joins, overlays), fps=fps, crf=crf)
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


def encode(path: Path, frames: Iterator[tuple[np.ndarray, float]], *, fps: int, crf: int) -> list[float]:
    """Write frames as H.264; return how much each is mixed."""
    mixed: list[float] = []
    aside = path.with_name(f".{path.name}")
    with av.open(str(aside), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": str(crf), "threads": "1"})
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


def _content(plan: Plan, random: np.random.Generator, size: Size, fps: int) -> tuple[list[Shown], list[Join]]:
    if not plan.kinds:
        return [DISTRACTORS[plan.theme](random, size, int(plan.seconds * fps), fps)], []
    # In a film of blanks every second take is a card.
    joins = [
        _join(random, kind, label="" if plan.theme != "blank" else "fade in" if k % 2 else "fade out")
        for k, kind in enumerate(plan.kinds)
    ]
    lengths = [
        _solo(random, plan, (before.count, after.count)) + before.count + after.count
        for before, after in zip((Join(), *joins), (*joins, Join()), strict=True)
    ]
    if plan.sources:
        return [_piece(random, source, length) for source, length in zip(plan.sources, lengths, strict=True)], joins
    texture, colours = str(random.choice(list(TEXTURES))), palette(random)
    takes: list[Shown] = []
    for k, length in enumerate(lengths):
        if plan.theme == "blank" and k % 2:
            takes.append(Card(_card(random, size), length))
        elif plan.theme == "reframed" and takes:
            takes.append(_elsewhere(random, takes[0], length, fps))
        else:
            takes.append(_take(random, plan.theme, size, length, fps, (texture, colours)))
    return takes, joins


def _take(
    random: np.random.Generator, theme: str, size: Size, count: int, fps: int, look: tuple[str, np.ndarray]
) -> Take:
    way = random.choice([-1, 1])
    return make_take(
        random,
        size,
        count=count,
        fps=fps,
        texture=look[0] if theme == "similar" else None,
        colours=look[1] if theme == "similar" else None,
        speed=(way * random.uniform(0.5, 1.5), random.uniform(-0.3, 0.3)) if theme == "moving" else None,
        brightness=random.uniform(0.07, 0.25) if theme == "dark" else 1.0,
    )


def _elsewhere(random: np.random.Generator, first: Shown, count: int, fps: int) -> Take:
    """The place of another take, seen from elsewhere."""
    assert isinstance(first, Take)
    height, width = first.world.shape[:2]
    path = roam(random, first.size, (width, height), count=count, fps=fps)
    path[:, 2] *= random.uniform(0.5, 1.3)
    return dataclasses.replace(first, path=path)


def _join(random: np.random.Generator, kind: str, *, label: str) -> Join:
    if kind == "cut":
        return Join()
    low, high = {"dissolve": (5, 31), "fade": (5, 31)}.get(kind, (8, 37) if kind in FADES else (6, 31))
    return Join(
        kind="dissolve" if kind == "fade" else kind,
        label=label if kind == "fade" else "",
        count=int(random.integers(low, high)),
        eased=bool(random.random() < 0.3),
        soft=float(random.choice([0.01, 0.01, 0.1, 0.3])),
        hold=int(random.integers(0, 6)),
    )


def _solo(random: np.random.Generator, plan: Plan, counts: tuple[int, int]) -> int:
    """How many frames a take shows alone."""
    if plan.theme == "short":
        return int(random.integers(8, 16))
    if plan.sources:  # clips are short
        return int(random.integers(18, min(60, 75 - sum(counts)) if sum(counts) < 50 else 20))
    return int(random.integers(14 if random.random() < 0.3 else 24, 26 if random.random() < 0.2 else 70))


def _piece(random: np.random.Generator, source: tuple[str, int], count: int) -> Shown:
    """``count`` frames from somewhere in the beginning of a real clip, scaled and cut to REAL_SIZE."""
    path, length = source
    first = int(random.integers(0, max(1, min(160, length - count))))
    width, height = REAL_SIZE
    pictures: list[np.ndarray] = []
    with Video(path) as video:
        for frame in itertools.islice(video.frames(), first, first + count):
            scale = max(width / video.width, height / video.height)
            picture = frame.picture(max(width, round(video.width * scale)), max(height, round(video.height * scale)))
            top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
            pictures.append(picture[top : top + height, left : left + width])
    return Piece(pictures, count)


@dataclasses.dataclass
class Piece:
    """Frames of a real clip; a clip that is too short runs back."""

    pictures: list[np.ndarray]
    count: int

    def __len__(self) -> int:
        return self.count

    def frame(self, i: int) -> np.ndarray:
        turn = len(self.pictures) - 1
        return self.pictures[i] if i <= turn else self.pictures[max(0, 2 * turn - i)]


def _card(random: np.random.Generator, size: Size) -> np.ndarray:
    picture = np.full((size[1], size[0], 3), random.choice([0, 0, 0, 255]), np.uint8)
    if random.random() < 0.3:
        text = " ".join(random.choice(WORDS, 2)).upper()
        cv2.putText(picture, text, (size[0] // 5, size[1] // 2), cv2.FONT_HERSHEY_DUPLEX, size[1] / 220, (128,) * 3, 2)
    return picture


def _blanks(takes: list[Shown], transitions: list[Transition], num_frames: int) -> list[tuple[int, int]]:
    starts = [0, *(transition.end for transition in transitions)]
    ends = [*(transition.first for transition in transitions), num_frames]
    return [(s, e) for take, s, e in zip(takes, starts, ends, strict=True) if isinstance(take, Card)]


def _overlays(random: np.random.Generator, size: Size) -> list[Effect]:
    """Bars above and below, and a channel's mark in the corner: they stay where they are across cuts."""
    width, height = size
    bars, mark = int(height * random.uniform(0.08, 0.14)), str(random.choice(WORDS))[:3].upper()
    chosen: list[Effect] = []

    def barred(frame: np.ndarray, i: int) -> np.ndarray:
        frame = frame.copy()
        frame[:bars] = frame[-bars:] = 0
        return frame

    def marked(frame: np.ndarray, i: int) -> np.ndarray:
        frame = frame.copy()
        at = (width * 4 // 5, height // 5)
        cv2.putText(frame, mark, at, cv2.FONT_HERSHEY_DUPLEX, height / 300, (235, 235, 235), 1, cv2.LINE_AA)
        return frame

    if random.random() < 0.2:
        chosen.append(barred)
    if random.random() < 0.2:
        chosen.append(marked)
    return chosen
