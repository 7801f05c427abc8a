"""Judging shots against the truth of a film. Clips are (first, end) pairs of frame indices, half open and sorted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.joins import Transition
from benchmarks.transitions import Film

Span = tuple[int, int]
TINY = 2  # frames of a shot that may be lost at a hard cut


@dataclasses.dataclass
class Verdict:
    """What one answer about one film, or several added up, is worth.

    Attributes:
        hard, gradual: every true transition with what became of it: a hard cut is ``found`` or ``missed``; a gradual
            one is ``excluded`` (no clip holds a frame of its core), ``seen`` (a cut or gap lies in it, but a clip holds
            mixed frames) or ``missed``.
        false_cuts: reported cuts that are none, and lie in no transition.
        cuts_inside: cuts reported within a gradual transition, where a gap should be.
        false_gaps: reported gaps of more than TINY frames where nothing happens.
        lost: frames of shots that lie in no clip.
        frames, minutes: of the films judged.
    """

    hard: list[tuple[Film, Transition, str]] = dataclasses.field(default_factory=list)
    gradual: list[tuple[Film, Transition, str]] = dataclasses.field(default_factory=list)
    false_cuts: list[tuple[Film, Span]] = dataclasses.field(default_factory=list)
    cuts_inside: list[tuple[Film, Span]] = dataclasses.field(default_factory=list)
    false_gaps: list[tuple[Film, Span]] = dataclasses.field(default_factory=list)
    lost: int = 0
    frames: int = 0
    minutes: float = 0.0

    def recall(self) -> float:
        return _share([what == "found" for _, _, what in self.hard])

    def precision(self) -> float:
        found = sum(what == "found" for _, _, what in self.hard)
        reported = found + len(self.false_cuts) + len(self.cuts_inside)
        return found / reported if reported else 1.0

    def f1(self) -> float:
        precision, recall = self.precision(), self.recall()
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def excluded(self) -> float:
        """Recall of gradual transitions whose mixed frames lie in no clip."""
        return _share([what == "excluded" for _, _, what in self.gradual])

    def seen(self) -> float:
        """Recall of gradual transitions within which something was reported."""
        return _share([what != "missed" for _, _, what in self.gradual])

    def false_per_10_min(self) -> float:
        count = len(self.false_cuts) + len(self.false_gaps) + len(self.cuts_inside)
        return 10 * count / self.minutes if self.minutes else 0.0

    def as_dict(self) -> dict[str, float | int]:
        return {
            "hard": len(self.hard),
            "precision": round(self.precision(), 4),
            "recall": round(self.recall(), 4),
            "f1": round(self.f1(), 4),
            "gradual": len(self.gradual),
            "excluded": round(self.excluded(), 4),
            "seen": round(self.seen(), 4),
            "false_cuts": len(self.false_cuts),
            "cuts_inside": len(self.cuts_inside),
            "false_gaps": len(self.false_gaps),
            "lost_frames": self.lost,
            "frames": self.frames,
            "minutes": round(self.minutes, 2),
            "false_per_10_min": round(self.false_per_10_min(), 2),
        }


def judge(film: Film, clips: Sequence[Span]) -> Verdict:
    """Hold clips against the truth of their film."""
    verdict = Verdict(frames=film.num_frames, minutes=film.minutes)
    reports, good = reports_of(film.num_frames, clips), _good(film)
    kept = np.zeros(film.num_frames, bool)
    for first, end in clips:
        kept[first:end] = True
    verdict.lost = int((good & ~kept).sum())
    used: set[Span] = set()
    for transition in film.transitions:
        if transition.hard:
            match = _at_cut(transition.first, reports, good, used)
            verdict.hard.append((film, transition, "missed" if match is None else "found"))
            used |= {match} if match is not None else set()
        else:
            verdict.gradual.append((film, transition, _gradual(transition, reports, kept)))
    for report in reports:
        if report not in used:
            _unmatched(film, report, good, verdict)
    return verdict


def total(verdicts: Iterable[Verdict]) -> Verdict:
    """Several verdicts added up."""
    whole = Verdict()
    for verdict in verdicts:
        for field in dataclasses.fields(Verdict):
            setattr(whole, field.name, getattr(whole, field.name) + getattr(verdict, field.name))
    return whole


def reports_of(num_frames: int, clips: Sequence[Span]) -> list[Span]:
    """What clips say lies between them: (c, c) is a cut before frame c, (a, b) a gap of the frames a to b - 1."""
    edges = [(0, 0), *clips, (num_frames, num_frames)]
    between = [(before[1], after[0]) for before, after in itertools.pairwise(edges)]
    return [span for i, span in enumerate(between) if span[1] > span[0] or 0 < i < len(between) - 1]


def clips_of_cuts(num_frames: int, cuts: Iterable[int]) -> list[Span]:
    """Clips that touch at each cut."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < num_frames}), num_frames]
    return list(itertools.pairwise(edges))


def _good(film: Film) -> np.ndarray:
    """Which frames show one shot alone."""
    good = np.ones(film.num_frames, bool)
    for first, end in (*((t.first, t.end) for t in film.transitions), *film.blank, *film.unsure):
        good[first:end] = False
    return good


def _at_cut(cut: int, reports: list[Span], good: np.ndarray, used: set[Span]) -> Span | None:
    """The report nearest to a true cut, at most a frame away, that costs next to nothing of its shots."""
    near = [
        (max(a - cut, cut - b, 0), (a, b))
        for a, b in reports
        if a - 1 <= cut <= b + 1 and int(good[a:b].sum()) <= TINY and (a, b) not in used
    ]
    return min(near)[1] if near else None


def _gradual(transition: Transition, reports: list[Span], kept: np.ndarray) -> str:
    if not kept[transition.core_first : transition.core_end].any():
        return "excluded"
    seen = any(a <= transition.end and b >= transition.first for a, b in reports)
    return "seen" if seen else "missed"


def _unmatched(film: Film, report: Span, good: np.ndarray, verdict: Verdict) -> None:
    first, end = report
    if any(first <= b and end >= a for a, b in film.unsure):
        return
    inside = any(first <= t.end and end >= t.first for t in film.transitions if not t.hard)
    if inside and first == end:
        verdict.cuts_inside.append((film, report))
    elif not inside and end - first <= TINY:
        verdict.false_cuts.append((film, report))
    elif not inside and int(good[first:end].sum()) > 0:
        verdict.false_gaps.append((film, report))


def _share(answers: list[bool]) -> float:
    return sum(answers) / len(answers) if answers else 1.0


def listing(verdict: Verdict, reports: dict[str, list[Span]]) -> list[str]:
    """One line for each miss and each false report, with what was reported near a miss.

    ``reports`` holds ``reports_of`` for each film by name.
    """
    lines = []
    for film, transition, what in (*verdict.hard, *verdict.gradual):
        if what not in ("found", "excluded"):
            near = [r for r in reports[film.name] if r[0] <= transition.end + 8 and r[1] >= transition.first - 8]
            where = f"{transition.first}" if transition.hard else f"{transition.first}-{transition.end - 1}"
            lines.append(
                f"{film.name:24} {what:7} {transition.kind} {where} (core {transition.core_first}-"
                f"{transition.core_end - 1}); near: {near or 'nothing'}"
            )
    for name in ("false_cuts", "cuts_inside", "false_gaps"):
        lines += [f"{film.name:24} {name.replace('_', ' ')} {span}" for film, span in getattr(verdict, name)]
    return sorted(lines)
