"""Near-duplicates among vectors whose truth is planted or found by comparing everything, and in runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.errors import StageError
from curation.footage import Film, Shot, write_film
from curation.run import run
from curation.stage import run_stage
from curation.summary import Summary
from curation.table import Store
from filters import semantic_duplicates
from filters.semantic_duplicates import SemanticDuplicates, originals
from tests.filters import tiny
from tests.helpers import clip_rows, contents, write_vectors

Found = dict[str, tuple[str | None, float | None]]


def units(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 in all directions."""
    drawn = np.random.default_rng([9, seed]).standard_normal((count, size))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def near(vectors: np.ndarray, cosines: np.ndarray, seed: int = 1) -> np.ndarray:
    """Vectors of length 1 that have these cosines with others, row by row."""
    aside = units(*vectors.shape, seed).astype(np.float64)
    aside -= (aside * vectors).sum(axis=1, keepdims=True) * vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return np.asarray(cosines[:, None] * vectors + np.sqrt(1 - cosines**2)[:, None] * aside, np.float32)


def table(
    folder: Path, vectors: list[Any], *, files: int = 1, encoder: str = "tests", **columns: list[Any]
) -> pa.Table:
    """Clips as the stage reads them, their vectors divided among some files."""
    clips = clip_rows(len(vectors)).drop_columns([name for name in columns if name in clip_rows(0).column_names])
    ids = clips["clip_id"].to_pylist()
    paths: list[str | None] = [None] * len(vectors)
    for i in range(files):
        own = slice(i, None, files)
        path = write_vectors(folder / f"{i}.parquet", ids[own], vectors[own])
        paths[own] = [path] * len(ids[own])
    values = {"bit_rate": [1e6] * len(vectors), **columns}
    for name, cells in values.items():
        clips = clips.append_column(name, pa.array(cells))
    return clips.append_column("embedding", pa.array(paths, pa.string()))


def places(clips: pa.Table, **arguments: Any) -> list[tuple[int | None, float | None]]:
    """Of each clip: where the clip to keep stands, and the score."""
    done = run_stage(SemanticDuplicates(**arguments), clips, mark="x@1", score_rejected=True)
    ids = clips["clip_id"].to_pylist()
    of = [None if name is None else ids.index(name) for name in done["semantic_duplicate_of"].to_pylist()]
    return list(zip(of, done["semantic_duplicate_score"].to_pylist(), strict=True))


def by_comparing_all(vectors: np.ndarray, alike: float) -> dict[int, tuple[int, float]]:
    """What ``originals`` says, said plainly."""
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    stay: list[int] = []
    found: dict[int, tuple[int, float]] = {}
    for i in range(len(vectors)):
        better = [j for j in stay if cosines[i, j] >= alike]
        if better:
            found[i] = better[0], pytest.approx(min(1.0, cosines[i, better[0]]), abs=1e-9)
        else:
            stay.append(i)
    return found


def test_planted_near_duplicates_are_all_found_with_their_cosine(tmp_path: Path) -> None:
    first = units(300, 64)
    cosines = np.concatenate([np.linspace(0.951, 1, 100), np.linspace(0.5, 0.949, 100)])
    vectors = np.concatenate([first, near(first[:200], cosines)])
    vectors *= np.random.default_rng(0).uniform(0.3, 1, (500, 1)).astype(np.float32)  # means are not of length 1
    found = places(table(tmp_path, vectors.tolist(), files=7))
    assert found[:300] == [(None, 0.0)] * 300
    assert [of for of, _ in found[300:400]] == list(range(100))
    assert [score for _, score in found[300:400]] == pytest.approx(cosines[:100].tolist(), abs=1e-6)
    assert found[400:] == [(None, 0.0)] * 100
    assert [of for of, _ in places(table(tmp_path, vectors.tolist()), alike=0.7)[400:]].count(None) < 60


@pytest.mark.parametrize(("size", "alike"), [(3, 0.95), (4, 0.9), (16, 0.6)])
@pytest.mark.parametrize("small", [False, True])
def test_it_is_what_comparing_everything_gives(
    size: int, alike: float, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        for name, value in {"_BLOCK": 300, "_CHUNK": 70, "_RUN": 33, "_PAIRS": 11}.items():
            monkeypatch.setattr(semantic_duplicates, name, value)
    vectors = units(1500, size)
    vectors[700] = vectors[3]
    assert originals(vectors, alike) == by_comparing_all(vectors, alike)


def test_who_goes_is_alike_to_one_that_stays(tmp_path: Path) -> None:
    angles = np.radians([0, 15, 30, 45])
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # neighbours have a cosine of 0.966
    assert [of for of, _ in places(table(tmp_path, steps.tolist()))] == [None, 0, None, 2]
    assert [of for of, _ in places(table(tmp_path, steps[::-1].tolist(), width=[1, 9, 1, 1]))] == [1, None, 1, None]


def test_the_best_is_kept_by_size_then_bits_then_length_then_id_and_never_a_rejected_one(tmp_path: Path) -> None:
    def best(**columns: list[Any]) -> list[int | None]:
        return [of for of, _ in places(table(tmp_path, [[1.0, 0.0]] * 3, **columns))]

    assert best(width=[640, 1920, 640]) == [1, None, 1]
    assert best(bit_rate=[1e6, None, 3e6]) == [2, 2, None]
    assert best(duration_s=[5.0, 5.1, 5.0]) == [1, None, 1]
    assert best() == [None, 0, 0]
    assert best(width=[640, 1920, 640], status=["kept", "rejected", "kept"]) == [None, 0, 0]


def test_what_has_no_embedding_is_unknown(tmp_path: Path) -> None:
    unknown = (None, None)
    vectors = [[1, 0], None, [0, 0], [float("nan"), 1], [1, 0.01]]
    found = places(table(tmp_path, vectors))
    assert found[:4] == [(None, 0.0), unknown, unknown, unknown]
    assert found[4] == (0, pytest.approx(0.99995, abs=1e-6))
    clips = table(tmp_path, vectors)
    place = clips.schema.get_field_index("embedding")
    assert places(clips.set_column(place, "embedding", pa.nulls(5, pa.string()))) == [unknown] * 5
    write_vectors(tmp_path / "0.parquet", clips["clip_id"].to_pylist()[4:], vectors[4:])  # a file without the others
    assert places(clips) == [unknown] * 4 + [(None, 0.0)]
    assert places(table(tmp_path, [])) == []


@pytest.mark.parametrize("vector", [[1.0, 0.0], [1.0, 0.0, 0.0]])
def test_vectors_of_two_encoders_are_not_compared(tmp_path: Path, vector: list[float]) -> None:
    clips = table(tmp_path, [[1.0, 0.0]] * 4, files=2)
    write_vectors(tmp_path / "1.parquet", clips["clip_id"].to_pylist()[1::2], [vector] * 2, encoder="another")
    with pytest.raises(StageError, match=r"1\.parquet and .*0\.parquet are by different encoders; remove both"):
        places(clips)


def test_buckets_find_what_was_planted_in_whatever_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_duplicates, "_FEW", 100)
    monkeypatch.setattr(semantic_duplicates, "_BLOCK", 512)
    first = units(4000, 32)
    vectors = np.concatenate([first, near(first[:400], np.linspace(0.97, 1, 400))])
    assert len(semantic_duplicates.bucket_centres(vectors)) == 265
    clips = table(tmp_path, vectors.tolist())
    found = places(clips)
    assert sum(found[4000 + i][0] == i for i in range(400)) >= 399
    assert [of for of, _ in found[:4000]] == [None] * 4000
    done = SemanticDuplicates().process(clips)
    order = pa.array(np.random.default_rng(0).permutation(len(vectors)))
    assert SemanticDuplicates().process(clips.take(order)).equals(done.take(order).combine_chunks())


@pytest.mark.slow
def test_two_hundred_thousand_vectors_take_little_memory() -> None:
    """About 20 s on one core; `-s` shows the memory."""
    count, size, planted = 200_000, 64, 10_000
    vectors = units(count, size)
    pairs = np.sort(np.random.default_rng(0).permutation(count)[: 2 * planted].reshape(2, -1), axis=0)
    vectors[pairs[1]] = near(vectors[pairs[0]], np.linspace(0.951, 1, planted))
    tracemalloc.start()
    found = originals(vectors, 0.95)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    hits = sum(found.get(new, (None,))[0] == old for old, new in pairs.T.tolist())
    print(f"{peak >> 20} MB, {hits} of {planted}, {len(found) - hits} others")
    assert hits >= 0.99 * planted
    assert len(found) == hits  # by chance no two are alike
    assert peak < 200 << 20


DECODE = {"decode": {"isolate": False, "max_clip_s": 1}}
RULE = {"semantic_duplicate_score": {"max": 0, "unknown": "keep"}}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three films of several clips each; the second shows what the first does, in another size."""
    folder = tmp_path_factory.mktemp("films")
    shots = (Shot(seconds=2.0, colour="red"), Shot(seconds=1.5, background="desert", colour="blue"))
    other = (Shot(seconds=2.5, background="grey harbour", colour="purple"),)
    for name, scenes, width in (("one", shots, 320), ("two", shots, 160), ("three", other, 240)):
        height = width * 9 // 16 // 2 * 2
        write_film(folder / f"{name}.mp4", Film(name=f"{name}.mp4", shots=scenes, width=width, height=height))
    return [str(folder / f"{name}.mp4") for name in ("one", "two", "three")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip(tmp_path_factory.mktemp("models") / "clip")


def go(output: Path, model: Path, *videos: str) -> Summary:
    config = output.parent / "p.yaml"
    stages = [DECODE, {"embedding": {"model": str(model)}}, {"semantic_duplicates": {"alike": 0.99}}]
    config.write_text(json.dumps({"p": {"stages": [*stages, "sidecar_captions"], "keep": RULE}}))
    return run("p", list(videos), output, config=str(config), engine="local", shards=False)


def test_a_run_rejects_what_comparing_all_its_embeddings_says(films: list[str], model: Path, tmp_path: Path) -> None:
    summary = go(tmp_path / "out", model, *films)
    store = Store(tmp_path / "out")
    vectors = dict(pair for ids, rows in store.vectors() for pair in zip(ids, rows, strict=True))
    rows = {row["clip_id"]: row for row in store.clips().to_pylist()}
    rates = {row["video"]: row["bytes"] / row["duration_s"] for row in store.videos().to_pylist()}

    def rank(name: str) -> tuple[float, ...]:
        row = rows[name]
        return -row["width"] * row["height"], -rates[row["video"]], -row["duration_s"]

    ranked = sorted(sorted(vectors), key=rank)
    found = by_comparing_all(np.stack([vectors[name] / np.linalg.norm(vectors[name]) for name in ranked]), 0.99)
    assert 2 <= len(found) < len(rows) - 1
    assert summary.rejected_by == {"semantic_duplicate_score": len(found)}
    for i, name in enumerate(ranked):
        row = rows[name]
        assert row["semantic_duplicate_of"] == (ranked[found[i][0]] if i in found else None)
        assert row["semantic_duplicate_score"] == (pytest.approx(found[i][1].expected, abs=1e-6) if i in found else 0)  # type: ignore[attr-defined]
        assert row["status"] == ("rejected" if i in found else "kept")


def test_films_that_come_one_by_one_give_what_one_run_gives(films: list[str], model: Path, tmp_path: Path) -> None:
    go(tmp_path / "at_once", model, *films)
    for count in (1, 2, 3):
        go(tmp_path / "grown", model, *reversed(films[-count:]))
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")
    assert go(tmp_path / "grown", model, *films).metrics == {}
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")


def test_a_run_killed_while_vectors_are_compared_leaves_nothing_and_goes_on(
    films: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(semantic_duplicates, "originals", killed)
        go(output, model, *films)
    assert {path.suffix for path in (output / "embeddings").iterdir()} == {".parquet"}
    assert go(output, model, *films).metrics == {}
    go(tmp_path / "whole", model, *films)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_same(films: list[str], model: Path, tmp_path: Path) -> None:
    go(tmp_path / "local", model, *films)
    call = "run('p', sys.argv[3:], sys.argv[2], config=sys.argv[1], shards=False)"
    script = f"import sys; from curation.run import run; {call}"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "p.yaml"), str(tmp_path / "ray"), *films], check=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
