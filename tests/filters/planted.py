"""Output directories with embeddings and labels whose truth is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.table import CLIPS, VIDEOS, Store, conform

ENCODER = {"encoder": "ViT-Tiny", "weights": "planted"}


def ids_of(videos: np.ndarray) -> list[str]:
    """clip_ids of clips that belong to these videos."""
    return [f"{video:024x}-{i:011d}-{i + 1:011d}" for i, video in enumerate(videos)]


def write_run(
    folder: Path, ids: list[str], embeddings: np.ndarray, *, encoder: dict[str, str] | None = None, num_files: int = 2
) -> Path:
    """Write the tables of a run with embeddings N D (those of nothing but NaN are left out) in several files."""
    store = Store(folder)
    store.create()
    (folder / "embeddings").mkdir()
    for k in range(num_files):
        mine = range(k, len(ids), num_files)
        store.write("videos", f"part{k}", VIDEOS.empty_table())
        store.write("clips", f"part{k}", conform(pa.table({"clip_id": [ids[i] for i in mine]}), CLIPS))
        there = [i for i in mine if not np.isnan(embeddings[i]).all()]
        vectors = pa.array([embeddings[i].tolist() for i in there], pa.list_(pa.float32(), embeddings.shape[1]))
        table = pa.table({"clip_id": pa.array([ids[i] for i in there], pa.string()), "embedding": vectors})
        named = table.replace_schema_metadata(ENCODER if encoder is None else encoder)
        pq.write_table(named, folder / "embeddings" / f"part{k}.parquet")
    return folder


def write_labels(file: Path, ids: list[str], **columns: np.ndarray) -> Path:
    """Write a CSV file of labels."""
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["clip_id", *columns])
        writer.writerows(zip(ids, *(values.tolist() for values in columns.values()), strict=True))
    return file


def planted(
    num_videos: int = 60, clips_each: int = 5, dimension: int = 32, *, share: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips of two classes: video of each N, truth N, embeddings N D.

    Clips of a video resemble each other more than those of a class do, as in real footage, and the classes differ in
    a direction that no single dimension shows and that is the same whatever the seed.
    """
    rng = np.random.default_rng(seed)
    videos = np.repeat(np.arange(num_videos), clips_each)
    truth = (rng.random(len(videos)) < share).astype(int)
    direction = np.sign(np.random.default_rng(99).normal(size=dimension)) / np.sqrt(dimension)
    looks = rng.normal(size=(num_videos, dimension))
    looks -= np.outer(looks @ direction, direction)  # the look of a video tells nothing of its class
    noise = 0.15 * rng.normal(size=(len(videos), dimension))
    return videos, truth, 5 + looks[videos] + np.outer(truth - 0.5, direction) * 1.2 + noise
