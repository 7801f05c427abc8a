"""The captioning half of ``cutroom demo``: a class of films, version 1 by the teacher, a short distillation, version 2.

Everything goes the way that real footage goes: films are decoded by a run, version 1's captions are in its table, and
the distilled model is named in a pipeline. The model begins with random weights, so that nothing is downloaded.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from captioning.distill import Distilled, distill
from captioning.examples import read_examples
from captioning.question import Question
from captioning.small import make_small
from captioning.tuning import Settings
from captioning.world import ATTRIBUTES, PROMPT, attributes_of, write_films
from curation.engine import EngineName
from curation.progress import Progress
from curation.run import run
from curation.summary import Summary
from curation.table import Store

MINUTES = 1.5
QUESTION = Question(prompt=PROMPT, frames=8, max_tokens=24)
_FILMS, _EXAMS = 30, 2
SIDE = 64  # px; a VAE makes 8 x 8 of it
_PIPELINES = """\
v1:
  about: Frames, motion, and a summary of both, each by a function of the teacher for the generated world.
  stages:
    - decode: {detector: none, max_clip_s: 2, sheet_fps: 4, sheet_long_side_px: 48}
    - frame_captions: {model: "captioning.teacher:frame"}
    - short_caption: {model: "captioning.teacher:motion"}
    - caption: {version: v1, model: "captioning.teacher:summary"}
  shards: {crf: 12, preset: veryfast}
"""
_SECOND = """\

v2:
  about: The same clips by one model, distilled from the captions of v1.
  stages:
    - decode: {detector: none, max_clip_s: 2, sheet_fps: 4, sheet_long_side_px: 48}
    - caption: {version: v2, model: MODEL, batch_size: 32}
"""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A clip with its captions by both versions, and where its contact sheet is."""

    video: str
    start_s: float
    end_s: float
    clip_id: str
    sheet: Path
    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class School:
    """The folders and steps of the captioning half. Every step may be called again and continues."""

    folder: Path
    engine: EngineName
    films: int = _FILMS
    exams: int = _EXAMS
    minutes: float = MINUTES
    seed: int = 0

    @property
    def model(self) -> Path:
        return self.folder / "captioner"

    @property
    def lessons(self) -> Path:
        """The run of version 1 over the films to learn from."""
        return self.folder / "lessons-v1"

    @property
    def pipelines(self) -> Path:
        return self.folder / "pipelines.yaml"

    def film(self) -> None:
        """Encode the films to learn from and those for the exam, and write the pipelines."""
        write_films(self.folder / "lessons", self.films, seed=10 * self.seed + 1, side=SIDE, grain=False)
        write_films(self.folder / "exam", self.exams, seed=10 * self.seed + 2, side=SIDE, grain=False)
        model = json.dumps(str(self.model.absolute()))  # as YAML, wherever the pipelines are read from
        self.pipelines.write_text(_PIPELINES + _SECOND.replace("MODEL", model))

    def caption(self, version: str, films: str, *, progress: Progress, shards: bool = False) -> Summary:
        """Run a version over a folder of films, up to the table or to shards."""
        output = self.folder / f"{films}-{version}"
        footage, config = str(self.folder / films), str(self.pipelines)
        return run(version, [footage], output, config=config, engine=self.engine, shards=shards, progress=progress)

    def errors(self, version: str, films: str) -> dict[str, int]:
        """Why clips failed, and how many, as the table has it."""
        clips = Store(self.folder / f"{films}-{version}").clips(["clip_id", "error"])
        return dict(collections.Counter(error for error in clips["error"].to_pylist() if error))

    def distil(self, say: Callable[[str], None]) -> Distilled:
        """Train a tiny model from random weights on what version 1 said of the lessons, on the CPU."""
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()  # of files that are written in a moment

        learnt_from, base = self.folder / "lessons-v1", self.folder / "base"
        if not base.exists():
            aside = self.folder / ".base"
            captions = [example.caption for example in read_examples(learnt_from)]
            os.replace(make_small(aside, captions, prompt=PROMPT, seed=self.seed), base)
        settings = Settings(
            method="full",
            learning_rate=1e-3,
            optimiser="muon",
            batch=24,
            accumulate=1,
            minutes=self.minutes,
            held_out=0.05,
            judged=96,
            samples=1,
            evaluate_every=100,
            patience=None,
            seed=self.seed,
        )
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # more gain nothing on so small a model
        try:
            return distill(
                learnt_from,
                str(base),
                self.model,
                question=QUESTION,
                settings=settings,
                device="cpu",
                say=say,
            )
        finally:
            torch.set_num_threads(before)

    def compare(self) -> list[Pair]:
        """The clips of the exam that both versions have described, in the order of the films."""
        first, second = (self.folder / f"exam-{version}" for version in ("v1", "v2"))
        said = {row["clip_id"]: row["caption"] for _, row in _kept(first)}
        return sorted(
            (
                Pair(
                    video=row["video"],
                    start_s=row["start_s"],
                    end_s=row["end_s"],
                    clip_id=row["clip_id"],
                    sheet=Store(second).path("frames", part),
                    first=said[row["clip_id"]],
                    second=row["caption"],
                )
                for part, row in _kept(second)
                if row["clip_id"] in said
            ),
            key=lambda pair: (pair.video, pair.start_s),
        )


def agreement(pairs: Sequence[Pair]) -> dict[str, float]:
    """For each attribute, and for the whole caption, the share of clips of which both versions say the same."""
    said = [(attributes_of(pair.first), attributes_of(pair.second)) for pair in pairs]
    shares = {
        name: sum(first[name] == second[name] for first, second in said) / max(1, len(said))
        for name in (*ATTRIBUTES, "letters")
    }
    return {**shares, "every word": sum(pair.first == pair.second for pair in pairs) / max(1, len(pairs))}


def _kept(output: Path) -> list[tuple[str, dict[str, Any]]]:
    """The captioned clips of a run, each with the name of its part."""
    columns = ["clip_id", "video", "start_s", "end_s", "status", "caption"]
    rows = ((part, row) for part, clips in Store(output).parts("clips", columns) for row in clips.to_pylist())
    return [(part, row) for part, row in rows if row["status"] == "kept" and row["caption"]]
