"""Small things that several test files need."""

from __future__ import annotations

import atexit
import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.frames import PACKED, SHEET, Frames, pack
from curation.stage import Stage, TableStage
from curation.table import CAPTIONS, CLIPS, Store
from filters.video_hash import VideoHash

DIMENSION = 8  # of embeddings in tests


@functools.cache
def scratch() -> Path:
    """A folder for things that are made once and used by many tests; it goes when the tests end."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _classify() -> dict[str, Any]:
    from tests.filters.tiny import vit

    return {"model": str(vit(scratch() / "classifier")), "columns": {"watermark_score": "watermark"}}


def _learned() -> dict[str, Any]:
    from tests.filters.tiny import learned_filter

    learned_filter("lecture", DIMENSION).save(scratch() / "lecture.json")
    return {"model": str(scratch() / "lecture.json")}


def _embedding() -> dict[str, Any]:
    from tests.filters.tiny import clip

    return {"model": str(clip(scratch() / "clip", width=DIMENSION))}


def _aesthetic() -> dict[str, Any]:
    from tests.filters.tiny import head

    return {"head": str(head(scratch() / "head.pth", width=DIMENSION))}


def _captioner() -> dict[str, Any]:
    return {"model": "tests.captioning.scripted:describe"}


# Stage -> what makes arguments for it, where it cannot do without: models small enough to be made here.
EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "aesthetic": _aesthetic,
    "ask": lambda: {"model": "tests.captioning.scripted:judge"},
    "caption": lambda: {**_captioner(), "version": "direct"},
    "classify": _classify,
    "embedding": _embedding,
    "frame_captions": _captioner,
    "learned": _learned,
    "match": _embedding,
    "short_caption": _captioner,
}


def contents(output: Path) -> dict[str, Any]:
    """Everything a run produced, in an order that does not depend on how it was produced."""
    store = Store(output)
    clips = store.clips().to_pylist()
    videos = [{k: v for k, v in row.items() if k != "mtime_ns"} for row in store.videos().to_pylist()]
    frames = sorted(
        (row["clip_id"], row["t_s"], hashlib.md5(row["jpeg"]).hexdigest())
        for _, table in store.parts("frames")
        for row in table.to_pylist()
    )
    return {"clips": clips, "videos": videos, "frames": frames, "shards": shard_bytes(output)}


def shard_bytes(output: Path) -> dict[str, str]:
    """File name -> md5 of everything in the shards folder."""
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted((output / "shards").glob("*"))}


def clip_rows(count: int, **columns: Sequence[Any]) -> pa.Table:
    """A clip table of ``count`` kept clips, with further columns as given."""
    rows = [
        {
            "clip_id": f"v{i:023d}-00000000000-00002000000",
            "video": f"v{i}.mp4",
            "video_id": f"v{i:023d}",
            "start_s": 0.0,
            "end_s": 2.0,
            "duration_s": 2.0,
            "num_frames": 48,
            "fps": 24.0,
            "width": 64,
            "height": 36,
            "codec": "h264",
            "has_audio": False,
            "status": "kept",
            "measured": [],
        }
        for i in range(count)
    ]
    table = pa.Table.from_pylist(rows, schema=CLIPS)
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def moving_frames(request: Frames, count: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames that pan over noise, as ``request`` would deliver them."""
    import cv2

    width = request.long_side_px or 640
    height = width * 9 // 16
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, (width + count * 2) // 8, 3), np.uint8)
    world = cv2.resize(noise, (width + count * 2, height), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([world[:, 2 * i : 2 * i + width] for i in range(count)])
    if request.colour == "grey":
        frames = frames[..., 0]
    return np.ascontiguousarray(frames), np.arange(count) / (request.fps or 2.0)


def sheet_cell(frames: np.ndarray, times: np.ndarray) -> list[dict[str, Any]]:
    """A clip's contact sheet: frames T H W 3 (RGB) or T H W as JPEG."""
    import cv2

    bgr = [frame[..., ::-1] if frame.ndim == 3 else frame for frame in frames]
    return [{"t_s": t, "jpeg": cv2.imencode(".jpg", f)[1].tobytes()} for t, f in zip(times, bgr, strict=True)]


def write_vectors(path: Path, ids: Sequence[str], vectors: Sequence[Any], encoder: str = "tests") -> str:
    """A file of embeddings, as it is kept apart from the clip table."""
    size = max((len(vector) for vector in vectors if vector is not None), default=DIMENSION)
    columns = {"clip_id": pa.array(ids, pa.string()), "embedding": pa.array(vectors, pa.list_(pa.float32(), size))}
    pq.write_table(pa.table(columns).replace_schema_metadata({"encoder": encoder}), path)
    return str(path)


def _embeddings(stage: Stage, ids: list[str]) -> pa.Array:
    """The column as the stage is given it: over the whole table, as the file where each is."""
    vectors = np.random.default_rng(0).normal(size=(len(ids), DIMENSION)).tolist()
    if isinstance(stage, TableStage):
        return pa.array([write_vectors(scratch() / "vectors.parquet", ids, vectors)] * len(ids), pa.string())
    return pa.array(vectors, pa.list_(pa.float32()))


def batch_for(stage: Stage, count: int) -> pa.Table:
    """Clips with every column that ``stage`` reads, so that it can run."""
    table = clip_rows(count)
    for column in stage.inputs:
        if column in table.column_names:
            continue
        if column in _COLUMNS:
            make, kind = _COLUMNS[column]
            values = pa.array([make(i) for i in range(count)], kind)
        elif column == "frames":
            frames = getattr(stage, "frames", Frames.sheet(long_side_px=64))
            sheets = [sheet_cell(*moving_frames(frames, count=3, seed=i)) for i in range(count)]
            values = pa.array(sheets, SHEET)
        elif column.startswith("frames_"):
            frames = stage.frames  # type: ignore[attr-defined]
            values = pa.array([pack(*moving_frames(frames, seed=i)) for i in range(count)], PACKED)
        elif column == "embedding":
            values = _embeddings(stage, table["clip_id"].to_pylist())
        else:
            raise AssertionError(f"tests do not know how to make column {column!r}; teach _COLUMNS")
        table = table.append_column(column, values)
    return table


# Column -> its value for clip i, and its type.
_COLUMNS: dict[str, tuple[Callable[[int], Any], pa.DataType]] = {
    "bit_rate": (lambda i: 1e6, pa.float64()),
    "camera_motion": (lambda i: ["pan_left"], pa.list_(pa.string())),
    "caption": (lambda i: f"a dog, number {i}", pa.string()),
    "frame_captions": (lambda i: [{"t_s": 0.5, "text": f"a dog, {i}"}], CAPTIONS.field("frame_captions").type),
    "short_caption": (lambda i: f"dog {i} runs", pa.string()),
    "video_hash": (lambda i: VideoHash().score(*moving_frames(VideoHash.frames, seed=i)), pa.binary()),
    "video_path": (lambda i: f"/nowhere/v{i}.mp4", pa.string()),
}
