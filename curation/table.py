"""The clip table: Parquet, one row per clip, rows never vanish.

A part is the unit of commitment: the videos of one batch with all their clips and contact sheets, written as
``videos/P.parquet``, ``clips/P.parquet`` and ``frames/P.parquet``. The videos file is written last and makes the part
count; the others without it are leftovers of a killed run and are removed. Each file is written aside and renamed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import TableError
from curation.files import LEFTOVERS, aside, flush

VIDEOS = pa.schema(
    [
        ("video", pa.string()),
        ("video_id", pa.string()),
        ("status", pa.string()),  # done | failed
        ("error", pa.string()),  # why it failed, or what was lost
        ("duration_s", pa.float64()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("has_audio", pa.bool_()),
        ("seekable", pa.bool_()),  # false: only reading from the start gives frames the times of the table
        ("num_shots", pa.int32()),
        ("num_clips", pa.int32()),
        # Dissolves, fades and wipes: no clip has any part of them.
        ("transitions", pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())]))),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),  # with bytes: tells whether the file must be fingerprinted again
        ("measured", pa.list_(pa.string())),
    ]
)
CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video", pa.string()),
        ("video_id", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("has_audio", pa.bool_()),
        ("status", pa.string()),  # kept | rejected | failed
        ("reason", pa.string()),  # the first rule that failed
        ("error", pa.string()),  # stage: Type: message
        ("measured", pa.list_(pa.string())),  # stage@key: what measured the scores of this row
    ]
)
USAGE = pa.struct(  # of the column NAME_usage: what the caption NAME is by, and what it took
    [
        ("model", pa.string()),
        ("prompt", pa.string()),  # name#digest of its text
        ("calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cut_off", pa.bool_()),
    ]
)
CAPTIONS = pa.schema(
    [
        ("frame_captions", pa.list_(pa.struct([("t_s", pa.float64()), ("text", pa.string())]))),
        ("short_caption", pa.string()),
        ("caption", pa.string()),
        ("caption_version", pa.string()),
        ("caption_model", pa.string()),
        ("caption_prompt", pa.string()),
    ]
)
CLEANED = pa.schema(  # of the stage clean_captions; a table without that stage does not have them
    [
        ("clean_caption", pa.string()),
        ("caption_changes", pa.list_(pa.string())),  # the rules of cleaning that changed something; null: not cleaned
    ]
)
SHARDED = pa.schema([("shard", pa.string()), ("sample_key", pa.string())])
FRAMES = pa.schema([("clip_id", pa.string()), ("t_s", pa.float64()), ("jpeg", pa.binary())])

# Columns too large for the clip table, and the dataset in which each has a place of its own beside ``clip_id``.
APART = {"embedding": "embeddings"}
KINDS = ("videos", "clips", "frames")
_RUN = ".run"  # holds the name of the run that began last
_ROW_GROUP = 2048  # so that contact sheets of a long film are never in memory as a whole
NOT_DECODED = "not-decoded"  # the part of files that never reach the decoder: unreadable ones and copies of others


@dataclasses.dataclass
class Part:
    """A unit of work and of commitment: Arrow tables that travel through the steps of a run together."""

    id: str
    videos: pa.Table = dataclasses.field(default_factory=VIDEOS.empty_table)
    clips: pa.Table = dataclasses.field(default_factory=CLIPS.empty_table)
    frames: pa.Table = dataclasses.field(default_factory=FRAMES.empty_table)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metric: str, value: float) -> None:
        """Add to a counter that is summed over the run, such as ``frames_decoded``."""
        self.metrics[metric] = self.metrics.get(metric, 0.0) + value

    def delivered(self) -> Part:
        """This part of a shard's clips, all of them delivered."""
        return Part(
            self.id,
            clips=self.clips.select(["clip_id"]).append_column("error", pa.nulls(self.clips.num_rows, pa.string())),
        )

    def to_row(self) -> dict[str, Any]:
        """Serialise for an engine; a part is one row, so no engine can split or merge it."""
        tables = {kind: _to_ipc(getattr(self, kind)) for kind in KINDS}
        return {"id": self.id, "metrics": json.dumps(self.metrics), **tables}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Part:
        tables = {kind: pa.ipc.open_stream(row[kind]).read_all() for kind in KINDS}
        return cls(id=row["id"], metrics=json.loads(row["metrics"]), **tables)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Store:
    """The tables of one output directory. ``run``: the run that writes to it, as ``begin`` named it."""

    def __init__(self, root: str | os.PathLike[str], *, run: str | None = None) -> None:
        self.root = Path(root).absolute()  # workers on a cluster start in other folders
        self.run = run

    def path(self, kind: str, part_id: str) -> Path:
        return self.root / kind / f"{part_id}.parquet"

    @property
    def kept(self) -> Path:
        """A folder for what stages keep of videos that are not committed yet."""
        return self.root / "pending"

    def scratch(self, name: str) -> Path:
        """A file that is of use only until a part is committed; what is left over goes with the next run."""
        return self.root / "frames" / f".{name}.{uuid.uuid4().hex[:8]}.tmp"

    def create(self) -> None:
        """Make the folders and remove what killed runs left behind."""
        for kind in KINDS:
            (self.root / kind).mkdir(parents=True, exist_ok=True)
        for folder in (".", *KINDS, *APART.values()):
            for leftover in (self.root / folder).glob(LEFTOVERS):
                leftover.unlink()
        committed = set(self.part_ids())
        for kind in ("clips", "frames", *APART.values()):
            for path in (self.root / kind).glob("*.parquet"):
                if path.stem not in committed:
                    path.unlink()

    def begin(self) -> None:
        """Name a run. From now on workers that a killed run left behind commit nothing."""
        self.run = uuid.uuid4().hex
        with aside(self.root / _RUN) as file:
            file.write_text(self.run, encoding="utf-8")

    def _check_run(self, what: object) -> None:
        """Raise TableError where another run has begun since."""
        if self.run and (self.root / _RUN).read_text(encoding="utf-8") != self.run:
            raise TableError(f"{what} is not written: another run has begun in {self.root}")

    def part_ids(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "videos").glob("*.parquet"))

    def commit(self, part: Part, *, sheets: bool) -> None:
        """Write the tables of a part that changed, the videos last. ``sheets``: the contact sheets changed.

        Raises:
            TableError: another run has begun since.
        """
        self._check_run(f"part {part.id}")
        if sheets or not self.path("frames", part.id).exists():
            self.write("frames", part.id, part.frames)
        apart = {kind: apart_of(part.clips, column) for column, kind in APART.items()}
        changed = {kind: table for kind, table in apart.items() if not self._holds(kind, part.id, table)}
        for kind in changed:  # before the clips: they must never be seen beside vectors of another run
            self.path(kind, part.id).unlink(missing_ok=True)
        for kind, table in {"clips": without_apart(part.clips), **changed, "videos": part.videos}.items():
            if table is not None and not self._holds(kind, part.id, table):
                (self.root / kind).mkdir(exist_ok=True)
                self.write(kind, part.id, table)

    def _holds(self, kind: str, part_id: str, table: pa.Table | None) -> bool:
        """Whether a file holds this table; of None, whether there is no file."""
        if table is None or not self.path(kind, part_id).exists():
            return table is None and not self.path(kind, part_id).exists()
        stored = self.read(kind, part_id, None if kind in KINDS else table.column_names)
        # The same vectors may have been measured by the same model under another name.
        return bool(stored.equals(table)) and _encoder(stored.schema) == _encoder(table.schema)

    def with_apart(self, part_id: str, clips: pa.Table, schema: pa.Schema) -> pa.Table:
        """Clips of a part with those columns of the schema that are kept apart, as far as they are there."""
        for column in set(schema.names) & set(APART):
            if not self.path(APART[column], part_id).exists():
                continue
            stored = self.read(APART[column], part_id, ["clip_id", column])
            if stored.schema.field(column).type == schema.field(column).type:  # else it is of other settings
                places = pc.index_in(clips["clip_id"], stored["clip_id"].combine_chunks())
                clips = clips.append_column(column, stored[column].take(places))
        return clips

    def vectors(self, column: str = "embedding") -> Iterator[tuple[list[str], np.ndarray]]:
        """A column that is kept apart, part after part: clip_ids, and float32 N D. Clips without it are left out."""
        for _, stored in self.apart(column):
            if stored.num_rows:
                flat = stored[column].combine_chunks().flatten().to_numpy()
                yield stored["clip_id"].to_pylist(), flat.reshape(stored.num_rows, -1)

    def apart(self, column: str) -> Iterator[tuple[str, pa.Table]]:
        """The dataset of a column that is kept apart, part after part; the metadata say what measured it."""
        for part_id in self.part_ids():
            if self.path(APART[column], part_id).exists():
                yield part_id, self.read(APART[column], part_id, ["clip_id", column])

    def remove(self, part_id: str) -> None:
        """Take a part back, the videos first, so that a crash leaves only leftovers."""
        for kind in (*KINDS, *APART.values()):
            self.path(kind, part_id).unlink(missing_ok=True)

    def write(self, kind: str, part_id: str, table: pa.Table) -> None:
        """Write one Parquet file aside, then rename it into place. Raises TableError as ``commit``."""
        path = self.path(kind, part_id)
        with aside(path) as file:
            pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP)
            flush(file)
            self._check_run(path)  # as late as can be: a large file takes its time

    def read(self, kind: str, part_id: str, columns: Iterable[str] | None = None) -> pa.Table:
        """Read one file of a part."""
        path = self.path(kind, part_id)
        if not path.exists():
            raise TableError(f"{path} is missing though its part was committed; restore it or start a new directory")
        try:
            table = pq.ParquetFile(path).read(None if columns is None else list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise TableError(f"{path} cannot be read ({error}); restore it or start a new directory") from error
        expected = {"videos": VIDEOS, "clips": CLIPS, "frames": FRAMES}[kind] if columns is None else pa.schema([])
        if missing := set(expected.names) - set(table.column_names):
            raise TableError(f"{path} lacks {sorted(missing)} and is none of ours; move it away")
        return table

    def parts(self, kind: str, columns: Iterable[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """All committed parts of one table, one at a time."""
        for part_id in self.part_ids():
            yield part_id, self.read(kind, part_id, columns)

    def clips(self, columns: Iterable[str] | None = None) -> pa.Table:
        """The whole clip table in memory, ordered by clip_id."""
        tables = [table for _, table in self.parts("clips", columns)]
        if not tables:
            return CLIPS.empty_table()
        return pa.concat_tables(tables, promote_options="default").sort_by("clip_id")

    def videos(self) -> pa.Table:
        """The whole video table in memory, ordered by name."""
        tables = [table for _, table in self.parts("videos")]
        return pa.concat_tables(tables or [VIDEOS.empty_table()], promote_options="default").sort_by("video")


def caption_of(row: Mapping[str, Any]) -> str | None:
    """The caption of a clip that goes into the shards: the clean one where it was cleaned, else as it was written."""
    cleaned = row.get("caption_changes") is not None  # a clean caption of null says that nothing was left
    caption: str | None = row["clean_caption"] if cleaned else row.get("caption")
    return caption


def caption_columns(known: Container[str]) -> tuple[str, ...]:
    """Those columns of a table that ``caption_of`` looks at."""
    return tuple(name for name in ("caption", *CLEANED.names) if name in known)


def apart_of(clips: pa.Table, column: str) -> pa.Table | None:
    """A column as its own dataset has it: without the clips where it is unknown. None if there is no such column."""
    if column not in clips.column_names:
        return None
    table = clips.filter(clips[column].is_valid()).select(["clip_id", column])
    return table.replace_schema_metadata(table.schema.field(column).metadata)  # where readers look for it


def _encoder(schema: pa.Schema) -> bytes | None:
    """What measured the vectors in a file of a column kept apart."""
    found: bytes | None = (schema.metadata or {}).get(b"encoder")
    return found


def read_apart(
    column: str, files: pa.ChunkedArray, clip_ids: pa.ChunkedArray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors kept apart, a few thousand at a time, for a stage over the whole table.

    Args:
        files: of each clip, the file that may hold its vector, or null: what such a stage is given as the column.
        clip_ids: the clips.

    Yields:
        Positions of N clips, and their vectors, float32 N D. Clips without a vector are left out.

    Raises:
        TableError: the vectors are not all of one encoder, so they cannot be compared.
    """
    encoded = pa.chunked_array(files.chunks, pa.string()).combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    first: tuple[str, bytes | None, int] | None = None
    for path, low, high in zip(encoded.dictionary.to_pylist(), ends[:-1], ends[1:], strict=True):
        places = order[low:high]
        wanted, file = clip_ids.take(places).combine_chunks(), pq.ParquetFile(path)
        for batch in file.iter_batches(_ROW_GROUP, columns=["clip_id", column]):
            at = pc.index_in(batch["clip_id"], wanted)
            mask = pc.and_(at.is_valid(), batch[column].is_valid())
            found = at.filter(mask).to_numpy()
            if not len(found):
                continue
            vectors = batch[column].filter(mask).flatten().to_numpy().reshape(len(found), -1)
            own = path, _encoder(file.schema_arrow), vectors.shape[1]
            first = first or own
            if own[1:] != first[1:]:
                raise TableError(f"{path} and {first[0]} are by different encoders; remove both and run again")
            yield places[found], vectors


def without_apart(clips: pa.Table) -> pa.Table:
    """Clips as the clip table has them."""
    return clips.select([name for name in clips.column_names if name not in APART])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a table to a schema: columns in order, missing ones null, others dropped."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def failed_stage(error: str) -> str:
    """The stage that a clip's ``error`` names: it reads ``stage: Type: message``."""
    return error.partition(":")[0]


def without_marks(measured: Iterable[str], stages: Container[str]) -> list[str]:
    """The marks ``stage@key`` that are not of these stages."""
    return [mark for mark in measured if mark.partition("@")[0] not in stages]


def extend(*schemas: pa.Schema) -> pa.Schema:
    """Join schemas, the first mention of a column wins."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, field)
    return pa.schema(list(fields.values()))
