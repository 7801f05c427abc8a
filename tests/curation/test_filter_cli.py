"""``cutroom filter``: labels become a file that the stage ``learned`` takes; mistakes end with status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main

from curation.filter_cli import app
from filters.learned import LearnedFilter
from tests.filters.planted import ids_of, planted, write_labels, write_run


def cutroom(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curation.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, labels, other labels, labels by lot, and a trained filter."""
    folder = tmp_path_factory.mktemp("place")
    videos, truth, embeddings = planted()
    ids = ids_of(videos)
    embeddings[0] = np.nan
    write_run(folder / "out", ids, embeddings)
    write_labels(folder / "labels.csv", ids, lecture=truth, noise=np.random.default_rng(0).permutation(truth))
    write_labels(folder / "few.csv", ids[:12], lecture=truth[:12])
    (folder / "wrong.csv").write_text(f"clip_id,lecture\n{ids[0]},1\n{ids[1]},yes\n")
    (folder / "empty").mkdir()
    words = ["--run", "out", "--output", "lecture.json", "--name", "lecture"]
    done = cutroom("filter", "train", "labels.csv", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_training_writes_the_filter_and_says_how_good_it_is_and_where_to_put_it(place: Path) -> None:
    loaded, said = LearnedFilter.load(place / "lecture.json"), (place / "said.txt").read_text()
    verdict = loaded.cross_validated
    assert (verdict.at_half.f1 or 0) >= 0.95
    assert verdict.at_wanted is not None
    assert f"learned_lecture: 299 labels ({verdict.num_positive} of them 1) of 60 videos" in said
    for heading in ("threshold", "precision", "recall", "F1"):
        assert heading in said
    assert f"{verdict.at_wanted.threshold:.3f}" in said
    assert f"{verdict.at_half.f1:.3f}" in said
    assert "1 labelled clips have no usable embedding in the run and were left out." in said
    assert "- learned: {model: lecture.json}" in said


@pytest.mark.slow
def test_a_precision_that_cannot_be_had_is_said(place: Path, tmp_path: Path) -> None:
    words = ["--run", place / "out", "--output", tmp_path / "noise.json", "--name", "noise", "--precision", "0.97"]
    done = cutroom("filter", "train", place / "labels.csv", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "No threshold has a precision of 0.97: label more clips." in done.stdout


@pytest.mark.slow
def test_judging_says_the_same_as_json(place: Path) -> None:
    words = ["filter", "eval", "lecture.json", "labels.csv", "--run", "out", "--precision", "0.8"]
    shown, said = cutroom(*words, cwd=place), json.loads(cutroom(*words, "--json", cwd=place).stdout)
    assert shown.returncode == 0
    assert (said["name"], said["column"], said["num_labels"]) == ("lecture", "learned_lecture", 299)
    assert said["wanted_precision"] == 0.8
    assert said["at_half"]["f1"] >= 0.95
    trained = LearnedFilter.load(place / "lecture.json").cross_validated.at_wanted
    assert trained is not None
    assert said["at_trained"]["threshold"] == trained.threshold
    for row, key in (
        ("middle", "at_half"),
        ("threshold of the training", "at_trained"),
        ("precision of 0.8", "at_wanted"),
    ):
        line = next(line for line in shown.stdout.splitlines() if line.strip().startswith(row))
        assert f"{said[key]['threshold']:.3f}" in line
        assert f"{said[key]['recall']:.3f}" in line
    assert f"average precision {said['average_precision']:.3f}" in shown.stdout


TRAIN = ["filter", "train"]
TO = ["--run", "out", "--output", "new.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*TRAIN, "absent.csv", *TO], "cannot read absent.csv: No such file or directory"),
        ([*TRAIN, "labels.csv", *TO], "say with --name what to train a filter for; the columns are lecture, noise"),
        ([*TRAIN, "labels.csv", *TO, "--name", "lectur"], "no column 'lectur'. Did you mean 'lecture'?"),
        ([*TRAIN, "wrong.csv", *TO], "wrong.csv:3: lecture is 'yes'; write 0, 1, or nothing"),
        ([*TRAIN, "few.csv", *TO], "at least 10 of 3 videos are needed"),
        ([*TRAIN, "few.csv", *TO, "--precision", "90"], "a share above 0 and up to 1"),
        ([*TRAIN, "few.csv", "--run", "empty", "--output", "new.json"], "empty is not the output of a run"),
        ([*TRAIN, "few.csv", "--run", "out", "--output", "absent/new.json"], "--output is meant to be a file in a"),
        ([*TRAIN, "few.csv", "--run", "out", "--output", "empty"], "--output is meant to be a file in a folder that"),
        ([*TRAIN, "few.csv", "--run", "none", "--output", "./few.csv"], "--output few.csv is the file of labels"),
        ([*TRAIN, "few.csv", "--run", "out"], "Missing option '--output'"),
        (["filter", "eval", "absent.json", "few.csv", "--run", "out"], "cannot read the filter absent.json"),
        (["filter", "eval", "few.csv", "few.csv", "--run", "out"], "few.csv holds no filter"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_mistakes_end_with_status_2_and_write_nothing(words: list[str], says: str, place: Path) -> None:
    done = cutroom(*words, cwd=place)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "new.json").exists()
    assert (place / "few.csv").read_text().startswith("clip_id,lecture")


def test_every_verb_and_option_has_help() -> None:
    group = typer.main.get_command(app)
    assert group.help
    assert set(group.commands) == {"train", "eval"}  # type: ignore[attr-defined]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, f"{name} says nothing about itself"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} does not explain {parameter.name}"
