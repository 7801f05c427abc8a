"""``cutroom caption distill``: a run and a base become a model; mistakes end with status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from captioning.examples import read_examples
from captioning.small import Size, make_small
from captioning.world import PROMPT, make_world
from curation.cli import main

SIZE = Size(vision_layers=1, layers=1, vision_width=32, width=32, heads=2)


def cutroom(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curation.cli", "caption", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a base."""
    folder = tmp_path_factory.mktemp("place")
    store = make_world(folder / "out", 40)
    make_small(folder / "base", [e.caption for e in read_examples(store.root)], prompt=PROMPT, size=SIZE)
    return folder


@pytest.mark.slow
def test_options_reach_the_training_and_the_record_is_printed(place: Path) -> None:
    words = ["--method", "full", "--prompt", PROMPT, "--frames", 4, "--long-side-px", 40, "--max-tokens", 90]
    more = ["--learning-rate", 0.002, "--optimiser", "muon", "--batch", 2, "--accumulate", 3, "--epochs", 1]
    more += ["--held-out", 0.3, "--seed", 5, "--save-memory", "--rank", 3, "--alpha", 7, "--dropout", 0.25]
    done = cutroom("distill", "out", "--base", "base", "--output", "model", *words, *more, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((place / "model" / "distill.json").read_text())
    assert record["question"] == {"prompt": PROMPT, "frames": 4, "long_side_px": 40, "max_tokens": 90}
    chosen = {name: record["settings"][name] for name in ("method", "optimiser", "learning_rate", "batch", "seed")}
    assert chosen == {"method": "full", "optimiser": "muon", "learning_rate": 0.002, "batch": 2, "seed": 5}
    assert record["settings"]["save_memory"]
    assert [record["settings"][name] for name in ("rank", "alpha", "dropout")] == [3, 7, 0.25]
    assert (record["settings"]["accumulate"], record["settings"]["held_out"]) == (3, 0.3)
    assert "held out" in done.stderr
    again = cutroom("distill", "out", "--base", "base", "--output", "model", *words, *more, cwd=place)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert "caption: {version: v2, model: model}" in again.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "--base", "base", "--output", "x"], "not the output of a run"),
        (["out", "--base", "./nothing", "--output", "x"], "no weights at"),
        (["out", "--base", "base", "--output", "base"], "holds other files"),
        (["out", "--base", "base", "--output", "x", "--epochs", "0"], "epochs 0"),
        (["out", "--base", "base", "--output", "x", "--optimiser", "muon"], "method full"),
        (["out", "--base", "base", "--output", "x", "--epochs", "nan"], "epochs nan"),
        (["out", "--base", "base", "--output", "x", "--device", "gpu0"], "--device gpu0"),
        (["out", "--base", "base", "--output", "x", "--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_a_mistake_ends_with_status_2(
    place: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["cutroom", "caption", "distill", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (place / "x").exists()


@pytest.mark.slow
def test_damaged_weights_end_with_status_2(place: Path) -> None:
    (torn := shutil.copytree(place / "base", place / "torn") / "model.safetensors").write_bytes(b"nothing")
    done = cutroom("distill", "out", "--base", "torn", "--output", "x", cwd=place)
    assert done.returncode == 2, done.stderr
    assert f"{torn} is damaged" in " ".join(done.stderr.split())
    assert not (place / "x").exists()


@pytest.mark.slow
def test_judging_ends_with_status_1_where_the_model_can_caption_no_clip(place: Path) -> None:
    store = make_world(place / "torn", 8)
    for part_id, frames in list(store.parts("frames")):
        torn = pa.array([b"\xff\xd8torn"] * frames.num_rows, frames.schema.field("jpeg").type)
        store.write("frames", part_id, frames.set_column(frames.schema.get_field_index("jpeg"), "jpeg", torn))
    done = cutroom("eval", "torn", "--model", "base", "--json", cwd=place)
    assert done.returncode == 1, done.stderr
    assert len(json.loads(done.stdout)["errors"]) == 8
