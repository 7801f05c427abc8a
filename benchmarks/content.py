"""What the films for measuring shot detection show: takes and joins by theme, painted or from real clips."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import cv2
import numpy as np

from benchmarks.distractors import DISTRACTORS
from benchmarks.joins import FADES, Card, Join, Shown
from benchmarks.scenes import Effect, Take, make_take, roam
from benchmarks.worlds import TEXTURES, WORDS, Size, palette
from curation.video import Video

REAL_SIZE: Size = (384, 216)
VISIBLE = 6.0  # levels of 255 by which the pictures on both sides of a transition differ at least, on average


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a film is made from."""

    path: Path
    theme: str
    seed: tuple[int, ...]
    kinds: tuple[str, ...] = ()  # of its joins; none: a distractor
    sources: tuple[tuple[str, int], ...] = ()  # real clips and how many frames they have; none: painted
    seconds: float = 21.0  # of a distractor


def content(plan: Plan, random: np.random.Generator, size: Size, fps: int) -> tuple[list[Shown], list[Join]]:
    """The takes of a film and how they are joined."""
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
    look = str(random.choice(list(TEXTURES))), palette(random)
    takes: list[Shown] = []
    for k, length in enumerate(lengths):
        behind = joins[k - 1].count if k else 0
        for _ in range(12):  # a transition that nobody can see is none
            take = _show(random, plan, size, fps, look, takes, length)
            if _visible(takes[-1].frame(len(takes[-1]) - 1 - behind) if k else None, take.frame(behind)):
                break
        takes.append(take)
    return takes, joins


def _show(
    random: np.random.Generator,
    plan: Plan,
    size: Size,
    fps: int,
    look: tuple[str, np.ndarray],
    before: list[Shown],
    count: int,
) -> Shown:
    if plan.theme == "blank" and len(before) % 2:
        return Card(_card(random, size), count)
    if plan.theme == "reframed" and before:
        return _elsewhere(random, before[0], count, fps)
    return _take(random, plan.theme, size, count, fps, look)


def _visible(old: np.ndarray | None, new: np.ndarray) -> bool:
    """Whether the new picture differs from the old one; the first of a film, whether it shows anything."""
    if old is None:
        return float(new.std()) > VISIBLE
    return float(cv2.absdiff(old, new).max(axis=2).mean()) > VISIBLE


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


def overlays(random: np.random.Generator, size: Size) -> list[Effect]:
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
