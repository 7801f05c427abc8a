"""How much the caption of a clip says what that of the clip before says."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any, ClassVar

import pyarrow as pa

from captioning.words import words
from curation.stage import TableStage
from curation.table import caption_columns, caption_of


@dataclasses.dataclass(kw_only=True)
class CaptionSimilarity(TableStage):
    """Compare each caption with that of the clip before it in the same video.

    Writes:
        caption_similarity: share (0..1) of pairs of neighbouring words that both captions have (Dice's coefficient): 1
            for the same words in the same order. 0 for the first clip of a video; unknown without a caption.

    The clip before is the last one that is kept and has a caption. So of a row of clips that are captioned alike a rule
    with ``max`` keeps the first. Behind ``clean_captions`` clean captions are compared.
    """

    name: ClassVar[str] = "caption_similarity"
    writes: ClassVar[pa.Schema] = pa.schema([("caption_similarity", pa.float32())])

    def __post_init__(self) -> None:
        self._captions: tuple[str, ...] = ("caption",)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on the stages before
        return (*self._captions, "video_id", "start_s", "clip_id", "status")

    def check_inputs(self, columns: pa.Schema) -> None:
        self._captions = caption_columns(columns.names)

    def process(self, clips: pa.Table) -> pa.Table:
        rows: list[dict[str, Any]] = clips.to_pylist()
        scores: list[float | None] = [None] * len(rows)
        before: dict[str, str] = {}
        for i in sorted(range(len(rows)), key=lambda i: (rows[i]["start_s"], rows[i]["clip_id"])):
            caption, video = caption_of(rows[i]) or "", rows[i]["video_id"]
            if not words(caption):
                continue
            scores[i] = similarity(before[video], caption) if video in before else 0.0
            if rows[i]["status"] == "kept":
                before[video] = caption
        return pa.table([pa.array(scores, pa.float32())], schema=self.writes)


def similarity(one: str, other: str) -> float:
    """Dice's coefficient of the pairs of neighbouring words, 0..1; beginning and end count as words."""
    pairs = [_pairs(one), _pairs(other)]
    return 2 * (pairs[0] & pairs[1]).total() / (pairs[0].total() + pairs[1].total())


def _pairs(text: str) -> collections.Counter[tuple[str, str]]:
    said = ["", *(word.lower() for word in words(text)), ""]
    return collections.Counter(itertools.pairwise(said))
