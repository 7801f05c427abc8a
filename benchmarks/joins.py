"""Joining takes to a film: hard cuts, dissolves, fades, wipes, pushes, with the exact extent of each.

Pictures are H W 3 BGR uint8. A gradual transition shows mixed frames only: its first frame is the first that is not the
old shot alone, its end is the first that is the new shot alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import cv2
import numpy as np

from benchmarks.scenes import Effect
from benchmarks.worlds import Size

PURE = 0.1  # a frame with less than this of something else may stay in a clip
FADES = ("fade through black", "fade through white")
WIPES = ("left", "right", "up", "down", "diagonal", "iris in", "iris out", "clock", "doors")
PUSHES = ("push left", "push right", "push up", "push down", "slide left", "slide up")
GRADUAL = ("dissolve", *FADES, *(f"wipe {way}" for way in WIPES), *PUSHES)


class Shown(Protocol):
    """Anything that can be filmed: a take, a black card, a piece of a real clip."""

    def __len__(self) -> int: ...

    def frame(self, i: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Card:
    """A still picture, such as black."""

    picture: np.ndarray
    count: int

    def __len__(self) -> int:
        return self.count

    def frame(self, i: int) -> np.ndarray:
        return self.picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join:
    """How one take gives way to the next: ``cut`` or one of GRADUAL over ``count`` mixed frames."""

    kind: str = "cut"
    count: int = 0
    eased: bool = False  # starts and ends slowly
    soft: float = 0.01  # width of a wipe's edge as a share of its way
    hold: int = 0  # frames that a fade stays at black or white
    label: str = ""  # what to call it in the truth; empty: its kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transition:
    """What is true of one transition.

    Attributes:
        first, end: the frames that are mixed, half open; for a hard cut both are the first frame of the new shot.
        core_first, core_end: without the outermost frames that hold less than PURE of something else.
    """

    kind: str
    first: int
    end: int
    core_first: int
    core_end: int

    @property
    def hard(self) -> bool:
        return self.first == self.end


def mix(join: Join, old: np.ndarray, new: np.ndarray, *, progress: float) -> tuple[np.ndarray, float]:
    """One frame at ``progress`` from 0 to 1, and how much of it is something else than the shot that it shows most."""
    p = progress * progress * (3 - 2 * progress) if join.eased else progress
    if join.kind == "dissolve":
        return np.asarray(cv2.addWeighted(old, 1 - p, new, p, 0)), min(p, 1 - p)
    if join.kind in FADES:
        covered = min(1.0, 2 * min(p, 1 - p) * join.count / max(1, join.count - join.hold))
        light = 255.0 * covered if join.kind.endswith("white") else 0.0
        shown = old if p < 0.5 else new
        return np.asarray(cv2.addWeighted(shown, 1 - covered, shown, 0, light)), covered
    if join.kind in PUSHES:
        picture, share = _pushed(join.kind, old, new, p)
        return picture, min(share, 1 - share)
    way = wipe_way((old.shape[1], old.shape[0]), join.kind.removeprefix("wipe "))
    mask = np.clip((p * (1 + join.soft) - way) / join.soft, 0, 1)
    share = float(mask.mean())
    return np.asarray(cv2.blendLinear(old, new, 1 - mask, mask)), min(share, 1 - share)


def _pushed(kind: str, old: np.ndarray, new: np.ndarray, p: float) -> tuple[np.ndarray, float]:
    """The new picture comes in from one side and shoves the old one out, or slides over it."""
    axis = 1 if kind.endswith(("left", "right")) else 0
    if kind.endswith(("right", "down")):
        mirrored = kind.replace("right", "left").replace("down", "up")
        picture, share = _pushed(mirrored, np.flip(old, axis), np.flip(new, axis), p)
        return np.flip(picture, axis), share
    length = old.shape[axis]
    moved = min(length - 1, max(1, round(p * length)))
    kept = old if kind.startswith("slide") else np.roll(old, -moved, axis)
    picture = np.array(kept)
    if axis == 1:
        picture[:, length - moved :] = new[:, :moved]
    else:
        picture[length - moved :] = new[:moved]
    return picture, moved / length


@functools.lru_cache(64)
def wipe_way(size: Size, way: str) -> np.ndarray:
    """H W float32: at which progress from 0 to 1 a wipe reaches each place."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x + 0.5) / width, (y + 0.5) / height
    radius = np.hypot((x - 0.5) * width, (y - 0.5) * height) / np.hypot(width / 2, height / 2)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "left": lambda: 1 - x,
        "right": lambda: x,
        "up": lambda: 1 - y,
        "down": lambda: y,
        "diagonal": lambda: (x + y) / 2,
        "iris in": lambda: 1 - radius,
        "iris out": lambda: radius,
        "clock": lambda: np.arctan2(x - 0.5, y - 0.5) / (2 * np.pi) + 0.5,
        "doors": lambda: 2 * np.abs(x - 0.5),
    }
    return np.ascontiguousarray(ways[way](), np.float32)


def join_takes(
    takes: Sequence[Shown], joins: Sequence[Join], overlays: Sequence[Effect] = ()
) -> Iterator[tuple[np.ndarray, float]]:
    """The film, frame by frame, each with how much of it is mixed (0: one shot alone).

    Args:
        takes: each as long as its joins on both sides and what it shows alone.
        joins: one fewer than takes.
        overlays: drawn over everything, such as bars and a logo.
    """
    index = 0
    for n, take in enumerate(takes):
        behind = joins[n - 1].count if n else 0
        ahead = joins[n] if n < len(joins) else Join()
        for i in range(behind, len(take)):
            k = i - (len(take) - ahead.count)
            picture, mixed = take.frame(i), 0.0
            if k >= 0:
                picture, mixed = mix(ahead, picture, takes[n + 1].frame(k), progress=(k + 1) / (ahead.count + 1))
                mixed = max(mixed, 1e-6)
            for overlay in overlays:
                picture = overlay(picture, index)
            yield picture, mixed
            index += 1


def transitions_of(lengths: Sequence[int], joins: Sequence[Join], mixed: Sequence[float]) -> list[Transition]:
    """The truth of a film: ``lengths`` of its takes, and how much each of its frames is mixed."""
    found, start = [], 0
    for length, join in zip(lengths, joins, strict=False):
        first = start + length - join.count
        strong = [i for i in range(first, first + join.count) if mixed[i] > PURE - 1e-9] or [first]
        core = (strong[0], strong[-1] + 1) if join.count else (first, first)
        found.append(
            Transition(
                kind=join.label or join.kind, first=first, end=first + join.count, core_first=core[0], core_end=core[1]
            )
        )
        start = first
    return found
