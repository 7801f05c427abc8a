"""Long films are decoded in ranges of presentation time, by as many workers as there are.

A finished range is a file of its own below ``ranges/``, so a killed run goes on within the film. Put together, the
ranges give what one pass gives: ``curation.clips`` decides everything from what lies near. That holds for sound files
whose timestamps survive a seek; a film with any damage is decoded in one pass instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.clips import Range
from curation.decode import Decode, Decoded, Decoder, Piece, join
from curation.errors import CutroomError, VideoError
from curation.files import LEFTOVERS, aside
from curation.isolate import Isolated
from curation.plan import Plan
from curation.sheets import open_sheets
from curation.stage import Needs
from curation.table import CLIPS, VIDEOS, Part, Store

_CELLS = 2.5  # of the grid, in a range
_LEAST_CELLS = 4  # of a film that is divided
_LEAST_BYTES = 1 << 20  # of a range: the length is only a claim of the file, its size is not
_END = "end"  # of the film
_FOLDER = "ranges"
_FACTS = b"cutroom.piece"


class RangeStore:
    """The finished ranges of one plan in one output directory."""

    def __init__(self, root: Path, plan: Plan) -> None:
        decides = [
            [step.mark, {name: dataclasses.asdict(rule) for name, rule in step.rules.items()}]
            for step in (plan.decode, *plan.dense)
        ]
        key = hashlib.blake2b(json.dumps([decides, plan.score_rejected]).encode(), digest_size=8).hexdigest()
        self.root, self.folder = root / _FOLDER, root / _FOLDER / key

    def begin(self) -> None:
        """Make the folder; what other plans left behind goes."""
        for other in self.root.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(LEFTOVERS):
            leftover.unlink()

    def end(self) -> None:
        """All videos are committed: the ranges have done their work."""
        shutil.rmtree(self.root, ignore_errors=True)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def sheets(self, name: str) -> Path:
        return self.folder / f"{name}.arrow"

    def write(self, name: str, piece: Piece | None) -> None:
        """Record a range, or with None that its film must be decoded in one pass."""
        facts = None if piece is None else {k: v for k, v in piece._asdict().items() if k != "clips"}
        clips = pa.table({}) if piece is None else piece.clips
        table = clips.replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
        with aside(self.path(name)) as file:
            pq.write_table(table, file)

    def take(self, row: dict[str, Any], mark: str) -> Decoded | None:
        """A film put together from its ranges; None where they are not all there, or one met damage."""
        names = sorted(path.stem for path in self.folder.glob(f"{row['video_id']}-*.parquet"))
        try:
            pieces = [self._read(name) for name in names]
            whole = [piece for piece in pieces if piece is not None]
            if not names or len(whole) < len(pieces) or len(names) != _count(names[0]):
                return None
            film = join(row, mark, whole, [open_sheets(self.sheets(name)) for name in names])
        except (OSError, ValueError, KeyError):  # a range that a dying node left torn
            return None
        # The film may have been moved since its ranges were decoded.
        where = pa.array([row["video"]] * film.clips.num_rows, pa.string())
        return film._replace(clips=film.clips.set_column(CLIPS.get_field_index("video"), "video", where))

    def _read(self, name: str) -> Piece | None:
        table = pq.read_table(self.path(name))
        facts = json.loads(table.schema.metadata[_FACTS])
        return None if facts is None else Piece(clips=table.replace_schema_metadata(None), **facts)


def range_parts(rows: Iterable[dict[str, Any]], grid_s: float) -> list[Part]:
    """One part for each range of each film that is long enough to be divided.

    Ranges are of nearly equal length, the longest first, and begin on the grid. Their number is even, because each
    reads some seconds of its neighbours too: a few that two workers finish together cost less than many short ones.
    """
    parts = []
    for row in rows:
        cells = round((row["duration_s"] or 0.0) / grid_s)
        count = min((row["bytes"] or 0) // _LEAST_BYTES, 2 * max(1, round(cells / (2 * _CELLS))))
        if cells >= _LEAST_CELLS and count >= 2:
            edges = [i * cells // count for i in range(count + 1)]
            table = pa.Table.from_pylist([row], schema=VIDEOS)
            for first, end in sorted(itertools.pairwise(edges), key=lambda pair: (pair[0] - pair[1], pair)):
                last = _END if end == cells else f"{end:05d}"
                parts.append(Part(f"{row['video_id']}-{first:05d}-{last}-{count:05d}", videos=table))
    return parts


def span(name: str, grid_s: float) -> Range:
    """The range with this name; the last one has no end, because the film may be longer than it says."""
    _, first, end, _ = name.split("-")
    return Range(int(first) * grid_s, math.inf if end == _END else int(end) * grid_s)


def _count(name: str) -> int:
    return int(name.rpartition("-")[2])


@dataclasses.dataclass
class DecodeRange:
    """The step that decodes one range and leaves the result in the output directory.

    Args:
        plan: the whole pipeline.
        output: the output directory.
        base: relative video names are relative to this folder.
    """

    plan: Plan
    output: str
    base: str

    @property
    def needs(self) -> Needs:
        return self.plan.decode_needs

    def setup(self) -> None:
        settings = self.plan.decode.stage
        assert isinstance(settings, Decode)
        self._grid_s = settings.grid_s
        self._store = RangeStore(Store(self.output).root, self.plan)
        decoder = Decoder(self.plan.decode, self.plan.dense, self.plan.score_rejected)
        self._child = Isolated(decoder, stall_s=settings.stall_s, memory_bytes=settings.memory_mb << 20)
        self._child.start()

    def __call__(self, part: Part) -> Part:
        [row] = part.videos.to_pylist()
        if not self._store.path(part.id).exists() and not self._is_spoilt(row):
            self._store.write(part.id, self._decode(part.id, row))
        start_s, end_s = span(part.id, self._grid_s)
        row["duration_s"] = min(end_s, row["duration_s"]) - start_s  # what counts as progress
        return Part(part.id, videos=pa.Table.from_pylist([row], schema=VIDEOS))

    def _is_spoilt(self, row: dict[str, Any]) -> bool:
        """Whether it is known already that the film must be decoded in one pass."""
        return self._store.path(f"{row['video_id']}-damaged").exists()

    def _decode(self, name: str, row: dict[str, Any]) -> Piece | None:
        path, sheets = os.path.join(self.base, row["video"]), self._store.sheets(name)
        try:
            piece: Piece = self._child.call(path, row, span(name, self._grid_s), str(sheets))
            if not piece.losses:
                return piece
        except CutroomError as error:
            if not isinstance(error, VideoError):
                raise
        except Exception:  # whatever it is, decoding in one pass will say it
            logging.getLogger(__name__).debug("range %s", name, exc_info=True)
        self._store.write(f"{row['video_id']}-damaged", None)
        return None

    def close(self) -> None:
        """End the decoder's process."""
        self._child.close()
