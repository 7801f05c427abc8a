"""Every command and example of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from captioning.endpoint import Endpoint
from curation.config import load_plan
from tests.filters.planted import ids_of, planted, write_labels, write_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def pipeline_of_the_readme(name: str) -> str:
    (block,) = (block for block in blocks("yaml") if block.startswith(f"{name}:"))
    return block


def test_captioners_of_the_readme_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "check", lambda self, model: None)  # nobody answers there
    (tmp_path / "told.yaml").write_text(pipeline_of_the_readme("told"))
    plan = load_plan("told", tmp_path / "told.yaml")
    names = ["frame_captions", "short_caption", "caption", "clean_captions", "caption_checks"]
    assert [step.stage.name for step in plan.later] == names


def test_questions_of_the_readme_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "check", lambda self, model: None)
    (tmp_path / "asked.yaml").write_text(pipeline_of_the_readme("asked"))
    plan = load_plan("asked", tmp_path / "asked.yaml")
    assert list(plan.rules) == ["asked_lecture", "asked_hands"]
    assert {"asked_lecture_reply", "asked_screen_noise", "asked_hands"} <= set(plan.clip_schema.names)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert named == ["demo", "test"]
    for target in named:
        assert f"\n{target}: $(READY)" in makefile


def test_every_verb_of_the_readme_has_help_and_every_verb_is_named_somewhere() -> None:
    import typer.main

    from curation.cli import app

    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, f"{name} says nothing about itself"
        assert re.search(rf"(cutroom|make) {name}", README), f"the README does not name {name}"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} does not explain {parameter.name}"


@pytest.fixture(scope="module")
def workplace(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README assumes it: footage/, prepared/, my_filters.py and mine.yaml."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "footage").mkdir()
    (folder / "prepared" / "videos").mkdir(parents=True)
    (folder / "prepared" / "labels").mkdir()
    for name in ("hard_cuts", "pan"):
        shutil.copy(footage / f"{name}.mp4", folder / "footage")
        shutil.copy(footage / f"{name}.json", folder / "footage")
    shutil.copy(footage / "pan.mp4", folder / "prepared" / "videos")
    (folder / "prepared" / "labels" / "pan.txt").write_text("A pan.")
    python = blocks("python")
    (folder / "my_filters.py").write_text(next(block for block in python if "class Redness" in block))
    (folder / "mine.yaml").write_text(pipeline_of_the_readme("mine"))
    (folder / "load.py").write_text(next(block for block in python if "webdataset" in block) + "print(len(video))\n")
    videos, truth, embeddings = planted()
    ids = ids_of(videos)
    write_run(folder / "labelled-out", ids, embeddings)
    for name in ("labels", "more-labels"):
        write_labels(folder / f"{name}.csv", ids, lecture=truth)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """What the README's `ray start` starts, in processes that end with the test."""
    script = (
        "import sys; from ray.cluster_utils import Cluster; "
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1}); cluster.add_node(num_cpus=1); "
        "print(cluster.address, flush=True); sys.stdin.read(); cluster.shutdown()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    yield next(line.strip() for line in process.stdout if re.fullmatch(r"[\d.]+:\d+", line.strip()))
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_in_order(workplace: Path, cluster: str) -> None:
    ran = []
    for line in commands():
        words = shlex.split(line)
        if words[0] in ("make", "ray"):
            continue
        assert words[0] == "cutroom", f"no test runs {line!r}"
        environment = {**os.environ, "RAY_ADDRESS": cluster} if "--address" in words else dict(os.environ)
        command = [sys.executable, "-m", "curation.cli", *words[1:]]
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran.append(words[1])
    curated = ["check", "run", "stats", "verify", "shard", "filter", "filter"]
    trained = ["train", "train", "vae", "train", "sample", "eval"]
    assert ran == [*curated, *trained, "run", "run"]
    assert len(list((workplace / "samples").glob("*.mp4"))) == 1
    for query in blocks("sql")[0].split(";"):
        if query.strip():
            assert duckdb.sql(query.replace("'out/", f"'{workplace}/out/")).fetchall() is not None
    loaded = subprocess.run([sys.executable, "load.py"], cwd=workplace, capture_output=True, text=True, check=True)
    assert int(loaded.stdout.splitlines()[-1]) > 1000
    column = duckdb.sql(
        f"SELECT redness FROM '{workplace}/mine-out/clips/*.parquet' WHERE redness IS NOT NULL"
    ).fetchall()
    assert len(column) >= 3
    tars = [(workplace / out / "shards" / "000000.tar").read_bytes() for out in ("out", "cluster-out")]
    assert tars[0] == tars[1]
