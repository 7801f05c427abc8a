"""Embeddings, and the scores that are read off them, against open_clip's own ways."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import model_files
from curation.config import load_plan
from curation.errors import ConfigError, MissingError, StageError, UsageError
from curation.footage import Film, Shot, write_film
from curation.frames import SHEET, Frames
from curation.model_files import MissingWeightsError
from curation.run import run
from curation.stage import Stage, run_stage
from curation.table import CLEANED, Store
from filters import clip
from filters.aesthetic import Aesthetic, as_one_layer, read_tensors
from filters.embedding import Embedding
from filters.match import Match
from tests.filters import tiny
from tests.helpers import clip_rows, contents, moving_frames, sheet_cell

PIPELINE = """\
looks:
  stages:
    - decode: {{max_clip_s: 1}}
    - embedding: {{model: {model}}}
    - aesthetic: {{head: {head}}}
    - sidecar_captions
    - match: {{model: {model}}}
  keep:
    duration_s: {{min: 0.5}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.head(tmp_path_factory.mktemp("models") / "head.pth")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of two shots; of one there are captions. The last shot is too short to be kept."""
    folder = tmp_path_factory.mktemp("footage")
    for name, colour in (("one", "red"), ("two", "blue")):
        shots = (Shot(seconds=1.5, colour=colour), Shot(seconds=0.4, background="desert", colour=colour))
        write_film(folder / f"{name}.mp4", Film(name=f"{name}.mp4", shots=shots, width=160, height=96))
    (folder / "one.txt").write_text("A red circle moves.")
    (folder / "three.mp4").write_bytes(b"no film")  # a part without any clip
    return folder


def sheets(*counts: int) -> pa.Table:
    """Clips with so many frames on their contact sheets."""
    size = Frames.sheet(long_side_px=64)
    cells = [sheet_cell(*moving_frames(size, count=n, seed=i)) if n else [] for i, n in enumerate(counts)]
    return clip_rows(len(counts), frames=pa.array(cells, SHEET))


def independent(model: Path, jpegs: list[bytes]) -> np.ndarray:
    """Embeddings of length 1, one picture after the other, by open_clip alone."""
    import open_clip
    import torch
    from PIL import Image

    from curation.torchvision import mend

    mend()
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model}")
    network.eval()
    found = []
    with torch.no_grad():
        for jpeg in jpegs:
            picture = transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            vector = network.encode_image(picture[None])[0].double()
            found.append((vector / vector.norm()).numpy())
    return np.array(found)


def test_an_embedding_is_the_mean_of_what_open_clip_says_of_each_frame(model: Path) -> None:
    clips = sheets(3, 0, 5, 1)
    done = run_stage(Embedding(model=str(model), batch=4), clips, mark="embedding@1")["embedding"].to_pylist()
    assert done[1] is None
    for i in (0, 2, 3):
        frames = independent(model, [cell["jpeg"] for cell in clips["frames"][i].as_py()])
        assert done[i] == pytest.approx(frames.mean(axis=0), abs=1e-5)
    assert np.abs(np.array(done[0]) - done[2]).max() > 0.01  # pictures differ


def embedded(model: Path, *counts: int) -> pa.Table:
    return run_stage(Embedding(model=str(model)), sheets(*counts), mark="embedding@1")


def test_an_aesthetic_score_is_the_mean_of_the_heads_over_frames(model: Path, head: Path) -> None:
    import torch

    clips = embedded(model, 4, 0, 2)
    stage = Aesthetic(head=str(head))
    stage.check_inputs(Embedding(model=str(model)).writes)
    stage.setup()
    done = run_stage(stage, clips, mark="aesthetic@1")
    state = torch.load(head, weights_only=True)
    for i, jpegs in enumerate([cell["jpeg"] for cell in sheet] for sheet in clips["frames"].to_pylist()):
        if not jpegs:
            assert done["aesthetic_score"][i].as_py() is None
            assert done["aesthetic_model"][i].as_py() is None
            continue
        values = torch.tensor(independent(model, jpegs)).float()
        for layer in (0, 2, 4):
            values = values @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
        assert done["aesthetic_score"][i].as_py() == pytest.approx(float(values.mean()), abs=1e-5)
        names = model_files.identity(str(head)), clip.identity(str(model))
        assert done["aesthetic_model"][i].as_py() == f"{names[0]} on {names[1]}"


def test_a_match_score_is_the_mean_cosine_of_caption_and_frames(model: Path) -> None:
    import open_clip
    import torch

    captions = ["a red ball", "", None, "a very long caption " * 60]
    clips = embedded(model, 3, 2, 2, 1).append_column("caption", pa.array(captions))
    done = run_stage(Match(model=str(model)), clips, mark="match@1")["match_score"].to_pylist()
    assert done[1:3] == [None, None]
    network, _, _ = open_clip.create_model_and_transforms(f"local-dir:{model}")
    network.eval()
    for i in (0, 3):
        frames = independent(model, [cell["jpeg"] for cell in clips["frames"][i].as_py()])
        with torch.no_grad():
            text = network.encode_text(open_clip.tokenize([captions[i]]))[0].double()
        assert done[i] == pytest.approx(float((frames @ (text / text.norm()).numpy()).mean()), abs=1e-5)
    assert abs(done[0] - done[3]) > 1e-4


def test_a_match_score_is_of_the_caption_that_is_shipped(model: Path) -> None:
    written, shipped = ["Caption: a red ball", "Caption:", "a dog"], ["A red ball", None, "a dog"]
    changes = [["label"], ["label", "nothing_left"], None]
    clips = embedded(model, 2, 2, 2).append_column("caption", pa.array(written))
    clips = clips.append_column(CLEANED.field(0), pa.array(shipped, CLEANED.field(0).type))
    clips = clips.append_column(CLEANED.field(1), pa.array(changes, CLEANED.field(1).type))
    stage = Match(model=str(model))
    before = stage.mark({"clean_caption": "clean_captions@1"})
    stage.check_inputs(clips.schema)
    assert stage.mark({"clean_caption": "clean_captions@1"}) != before
    as_shipped = run_stage(stage, clips, mark="match@1")["match_score"].to_pylist()
    place = clips.schema.get_field_index("caption")
    alone = clips.drop_columns(CLEANED.names).set_column(place, "caption", pa.array(shipped))
    assert as_shipped == run_stage(Match(model=str(model)), alone, mark="match@1")["match_score"].to_pylist()
    assert as_shipped[1] is None
    assert as_shipped != run_stage(Match(model=str(model)), clips, mark="match@1")["match_score"].to_pylist()


@pytest.fixture
def config(tmp_path: Path, model: Path, head: Path) -> Path:
    path = tmp_path / "looks.yaml"
    path.write_text(PIPELINE.format(model=model, head=head))
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were given to the encoder, call by call."""
    calls: list[int] = []
    original = Embedding._embed

    def counting(self: Embedding, jpegs: list[bytes]) -> Any:
        calls.append(len(jpegs))
        return original(self, jpegs)

    monkeypatch.setattr(Embedding, "_embed", counting)
    return calls


@pytest.mark.slow
def test_embeddings_have_a_dataset_of_their_own_and_are_computed_once(
    footage: Path, config: Path, tmp_path: Path, encoded: list[int], head: Path, model: Path
) -> None:
    output = tmp_path / "out"
    run("looks", [str(footage)], output, config=str(config), engine="local")
    store = Store(output)
    rows = {row["clip_id"]: row for row in store.clips().to_pylist()}
    kept = {identity for identity, row in rows.items() if row["status"] == "kept"}
    assert len(kept) == 4
    assert len(rows) == 6
    assert "embedding" not in store.clips().column_names
    found = dict(pair for ids, vectors in store.vectors() for pair in zip(ids, vectors, strict=True))
    assert set(found) == kept  # what a rule rejected before is not embedded
    assert {vector.dtype for vector in found.values()} == {np.dtype(np.float32)}
    for identity, row in rows.items():
        assert (row["aesthetic_score"] is not None) == (identity in kept)
        assert (row["match_score"] is not None) == (identity in kept and "one" in row["video"])
    assert duckdb.sql(f"SELECT count(embedding) FROM '{output}/embeddings/*.parquet'").fetchall() == [(4,)]
    file = next(iter((output / "embeddings").glob("*.parquet")))
    assert pq.read_schema(file).metadata[b"encoder"].decode() == clip.identity(str(model))
    assert pq.read_schema(file).field("embedding").type == pa.list_(pa.float32(), 8)

    before, frames = contents(output), sum(encoded)
    assert frames > 0
    run("looks", [str(footage)], output, config=str(config), engine="local")
    assert sum(encoded) == frames
    assert contents(output) == before

    other = tiny.head(tmp_path / "other.pth", seed=1)
    config.write_text(config.read_text().replace(str(head), str(other)))
    run("looks", [str(footage)], output, config=str(config), engine="local")
    assert sum(encoded) == frames  # read from the dataset
    scores = [row["aesthetic_score"] for row in Store(output).clips().to_pylist() if row["clip_id"] in kept]
    run("looks", [str(footage)], tmp_path / "fresh", config=str(config), engine="local")
    assert contents(output) == contents(tmp_path / "fresh")
    assert scores != [rows[identity]["aesthetic_score"] for identity in sorted(kept)]


@pytest.mark.slow
def test_another_encoder_or_lost_embeddings_are_computed_again(
    footage: Path, config: Path, tmp_path: Path, model: Path, head: Path, encoded: list[int]
) -> None:
    output = tmp_path / "out"
    run("looks", [str(footage)], output, config=str(config), engine="local")
    before, frames = contents(output), sum(encoded)
    for file in (output / "embeddings").glob("*.parquet"):
        file.unlink()
    run("looks", [str(footage)], output, config=str(config), engine="local")
    assert (contents(output), sum(encoded)) == (before, 2 * frames)
    wider = tiny.clip(tmp_path / "wider", width=12, seed=1)
    wider_head = tiny.head(tmp_path / "wider.pth", width=12)
    config.write_text(PIPELINE.format(model=wider, head=wider_head))
    run("looks", [str(footage)], output, config=str(config), engine="local")
    assert sum(encoded) == 3 * frames
    assert {vectors.shape[1] for _, vectors in Store(output).vectors()} == {12}


@pytest.mark.slow
def test_embeddings_of_a_run_that_was_killed_are_not_taken_for_those_of_another(
    footage: Path, config: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder, then another that ends between two files, then the first again."""
    output, text = tmp_path / "out", config.read_text()
    run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
    before = vectors_of(output)
    config.write_text(text.replace(str(model), str(tiny.clip(tmp_path / "other", seed=3))))
    original = Store.write
    for kind in ("clips", "embeddings", "videos"):

        def killed(self: Store, what: str, part_id: str, table: pa.Table, *, at: str = kind) -> None:
            if what == at:
                raise KeyboardInterrupt
            original(self, what, part_id, table)

        monkeypatch.setattr(Store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
        monkeypatch.setattr(Store, "write", original)
        (tmp_path / "first.yaml").write_text(text)
        run("looks", [str(footage)], output, config=str(tmp_path / "first.yaml"), engine="local", shards=False)
        assert vectors_of(output) == before, kind


@pytest.mark.slow
def test_vectors_of_one_encoder_never_lie_under_the_name_of_another(
    footage: Path, config: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another encoder of the same width, behind a stage before which the run is killed."""
    output, text = tmp_path / "out", config.read_text()
    text = text.replace("    - embedding:", "    - video_hash\n    - duplicates\n    - embedding:")
    config.write_text(text)
    run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
    before = vectors_of(output)
    assert len(before) == 4

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    config.write_text(text.replace(str(model), str(tiny.clip(tmp_path / "other", seed=3))))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("curation.run.over_the_whole_table", killed)
        run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
    assert vectors_of(output) == {}
    assert {row["match_score"] for row in Store(output).clips().to_pylist()} == {None}
    config.write_text(text)
    run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
    assert vectors_of(output) == before


def test_the_same_model_under_another_name_gives_its_name_to_the_files(
    footage: Path, config: Path, tmp_path: Path, model: Path
) -> None:
    output, moved = tmp_path / "out", tmp_path / "renamed"
    run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
    shutil.copytree(model, moved)
    config.write_text(config.read_text().replace(str(model), str(moved)))
    run("looks", [str(footage)], output, config=str(config), engine="local", shards=False)
    named = {pq.read_schema(file).metadata[b"encoder"].decode() for file in (output / "embeddings").glob("*.parquet")}
    assert named == {clip.identity(str(moved))}


@pytest.mark.parametrize("stage", [Embedding, Match])
def test_a_gpu_that_is_not_there_stops_the_run_and_fails_no_clip(stage: type[Stage], model: Path) -> None:
    clips = embedded(model, 1).append_column("caption", pa.array(["a dog"]))
    with pytest.raises(StageError, match="asks for a GPU"):
        run_stage(stage(model=str(model), gpus=1), clips, mark="x@1")  # type: ignore[call-arg]


def test_the_same_model_in_another_folder_is_the_same(model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / model.name
    shutil.copytree(model, moved)
    assert Embedding(model=str(moved)).mark({}) == Embedding(model=str(model)).mark({})
    other = tiny.clip(tmp_path / "other" / model.name, seed=5)
    assert Embedding(model=str(other)).mark({}) != Embedding(model=str(model)).mark({})


def vectors_of(output: Path) -> dict[str, list[float]]:
    return dict(pair for ids, rows in Store(output).vectors() for pair in zip(ids, rows.tolist(), strict=True))


@pytest.mark.slow
def test_embeddings_outlive_a_stage_over_the_whole_table(
    footage: Path, config: Path, tmp_path: Path, encoded: list[int]
) -> None:
    """What comes after it has them still, and they are written once and for the right clips."""
    plain, both = tmp_path / "plain", tmp_path / "both"
    run("looks", [str(footage)], plain, config=str(config), engine="local", shards=False)
    frames = sum(encoded)
    text = config.read_text().replace("    - embedding:", "    - video_hash\n    - embedding:")
    config.write_text(text.replace("    - aesthetic:", "    - duplicates\n    - aesthetic:"))
    for _ in range(2):
        run("looks", [str(footage)], both, config=str(config), engine="local", shards=False)
        assert sum(encoded) == 2 * frames
        assert vectors_of(both) == vectors_of(plain)
        scores = [[(r["clip_id"], r["aesthetic_score"]) for r in Store(o).clips().to_pylist()] for o in (plain, both)]
        assert scores[0] == scores[1]


def test_what_does_not_fit_is_said_before_work_starts(config: Path, tmp_path: Path, model: Path, head: Path) -> None:
    narrow = tiny.head(tmp_path / "narrow.pth", width=4)
    config.write_text(PIPELINE.format(model=model, head=narrow))
    with pytest.raises(ConfigError, match=r"looks\.yaml:5:.*takes embeddings of 4 numbers, these have 8"):
        load_plan("looks", config)
    text = PIPELINE.format(model=model, head=head)
    other = tiny.clip(tmp_path / "other", seed=2)
    config.write_text(text.replace(f"match: {{model: {model}", f"match: {{model: {other}"))
    with pytest.raises(ConfigError, match=r"that of `embedding` is .*they must be the same"):
        load_plan("looks", config)
    config.write_text(text.replace(str(head), str(tmp_path / "none.pth")))
    with pytest.raises(MissingError, match=r"looks\.yaml:5:.*no weights at .*none\.pth"):
        load_plan("looks", config)
    config.write_text(text.replace(str(model), str(tmp_path / "nothing")))
    with pytest.raises(MissingError, match=r"looks\.yaml:4:.*no weights at .*nothing"):
        load_plan("looks", config)


def test_a_folder_without_weights_is_missing(tmp_path: Path, model: Path) -> None:
    (tmp_path / clip.CONFIG).write_bytes((model / clip.CONFIG).read_bytes())
    with pytest.raises(MissingWeightsError, match="open_clip_pytorch_model"):
        clip.check(str(tmp_path))
    (tmp_path / clip.CONFIG).write_text("{}")
    with pytest.raises(UsageError, match="no configuration of an open_clip model"):
        clip.width(str(tmp_path))


@pytest.mark.parametrize(
    "width", ["Infinity", "NaN", "0", "-8", "true", "8.5", '"8"', "null", "[8]", str(10**12), "[" * 200_000]
)
def test_a_width_that_is_none_is_refused(width: str, tmp_path: Path) -> None:
    (tmp_path / clip.CONFIG).write_text(f'{{"model_cfg": {{"embed_dim": {width}}}}}')
    with pytest.raises(UsageError, match="no configuration of an open_clip model"):
        clip.width(str(tmp_path))


def test_weights_that_give_no_number_leave_the_score_unknown(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = embedded(model, 2, 2).append_column("caption", pa.array(["a dog", "a cat"]))
    monkeypatch.setattr(Aesthetic, "_load", lambda self: (np.full(8, np.nan), 0.0))
    stage = Aesthetic()
    monkeypatch.setattr("filters.aesthetic.identity", lambda *args: "head")
    stage.setup()
    assert run_stage(stage, clips, mark="aesthetic@1")["aesthetic_score"].to_pylist() == [None, None]
    monkeypatch.setattr(clip, "embed_texts", lambda model, texts, **how: np.full((len(texts), 8), np.nan, np.float32))
    assert run_stage(Match(model=str(model)), clips, mark="match@1")["match_score"].to_pylist() == [None, None]


@pytest.mark.parametrize("tower", ["visual.proj", "text_projection"])
def test_damaged_weights_of_the_encoder_are_said_and_nothing_is_stored(tower: str, model: Path, tmp_path: Path) -> None:
    """They load, and give vectors that are no numbers."""
    from safetensors.numpy import load_file, save_file

    damaged = shutil.copytree(model, tmp_path / "damaged")
    tensors = load_file(damaged / "open_clip_model.safetensors")
    tensors[tower][0, 0] = np.nan
    save_file(tensors, damaged / "open_clip_model.safetensors")
    clips = embedded(model, 2, 2).append_column("caption", pa.array(["a dog", "a cat"]))
    stage = (Embedding if tower == "visual.proj" else Match)(model=str(damaged))
    with pytest.raises(StageError, match=rf"the weights of {damaged} give no numbers"):
        run_stage(stage, clips, mark="m@1")


def test_a_single_layer_is_a_head_too_and_other_files_are_none(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    weight, bias = np.arange(4, dtype=np.float32)[None], np.array([0.5], np.float32)
    save_file({"weight": weight, "bias": bias}, tmp_path / "linear.safetensors")
    weights, offset = as_one_layer(read_tensors(tmp_path / "linear.safetensors"))
    assert weights.tolist() == [0, 1, 2, 3]
    assert offset == 0.5
    for tensors in ({}, {"weight": weight}, {"weight": np.eye(4), "bias": np.zeros(4)}):
        with pytest.raises(ValueError, match=r"it holds|it gives 4 numbers"):
            as_one_layer(tensors)


def test_a_head_is_never_executed(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "head.pth").write_bytes(pickle.dumps({"layers.0.weight": Trap()}))
    with pytest.raises(UsageError, match="no aesthetic head"):
        Aesthetic(head=str(tmp_path / "head.pth")).setup()
    assert not (tmp_path / "sprung").exists()
