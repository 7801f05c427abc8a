"""The command line: mistakes end with status 2 on one screen before work starts; results are said, and as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from curation.cli import app
from curation.table import Store


def cutroom(*words: object, cwd: Path | None = None, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curation.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)


def test_no_help_has_square_brackets_which_rich_would_take_for_styles() -> None:
    def told(command: Any) -> Iterator[str]:
        yield command.help or ""
        yield from (getattr(option, "help", None) or "" for option in command.params)
        for one in getattr(command, "commands", {}).values():
            yield from told(one)

    helps = list(told(typer.main.get_command(app)))
    assert len(helps) > 100
    assert not [text for text in helps if "[" in text]


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, curation.cli; print([m for m in sys.modules if m in %r])"
    heavy = ["ray", "torch", "cv2", "av", "pyarrow", "numpy", "scenedetect", "pydantic"]
    done = subprocess.run([sys.executable, "-c", script % heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def place(footage: Path, finished: Path, tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes.md").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("[]")
    (tmp_path / "footage").symlink_to(footage)
    (tmp_path / "finished").symlink_to(finished)
    good = "p:\n  stages: [decode, motion]\n"
    for name, text in {
        "stage.yaml": "p:\n  stages: [decode, moton]\n",
        "argument.yaml": "p:\n  stages:\n    - decode: {detektor: none}\n",
        "type.yaml": "p:\n  stages:\n    - decode: {max_clip_s: long}\n",
        "torn.yaml": "p:\n  stages: [decode\n",
        "rule.yaml": good + "  keep: {motion: {min: 1}}\n",
        "good.yaml": good,
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.yaml").write_bytes(b"\x00\xff\xfe")
    return tmp_path


RUN = ["run", "weight_free", "--input", "footage"]
MINE = ["run", "p", "--input", "footage", "--config"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "weight_free", "--input", "absent"], "absent: no such file or folder"),
        (["run", "weight_free", "--input", "empty"], "empty: no video in it"),
        (["run", "weight_free", "--input", "others"], "1 files with other suffixes"),
        (["run", "weight_free"], "no input"),
        (["run", "wait_free", "--input", "footage"], "Did you mean 'weight_free'?"),
        ([*MINE, "stage.yaml"], "stage.yaml:2:20: unknown stage 'moton'. Did you mean 'motion'?"),
        ([*MINE, "argument.yaml"], "argument.yaml:3:16: unknown key 'detektor'. Did you mean 'detector'?"),
        ([*MINE, "type.yaml"], "type.yaml:3:16: max_clip_s"),
        ([*MINE, "torn.yaml"], "torn.yaml:3:1: not valid YAML"),
        ([*MINE, "binary.yaml"], "binary.yaml"),
        ([*MINE, "rule.yaml"], "no stage writes 'motion'"),
        ([*MINE, "absent.yaml"], "cannot read absent.yaml"),
        ([*RUN, "--output", "file"], "is a file"),
        ([*RUN, "--output", "/proc/nowhere"], "cannot be written"),
        ([*RUN, "--address", "127.0.0.1:1"], "no Ray cluster answers there"),
        (["demo", "--output", "file"], "cannot be written"),
        (["stats", "torn"], "run.json cannot be read"),
        ([*RUN, "--output", "others"], "holds other files"),
        ([*MINE, "good.yaml", "--output", "finished"], "holds the result of pipeline 'weight_free', not 'p'"),
        ([*RUN, "--engine", "local", "--address", "auto"], "needs --engine ray"),
        ([*RUN, "--engine", "dask"], "dask"),
        ([*RUN, "--limit", "0"], "limit"),
        ([*RUN, "--colour", "red"], "colour"),
        (["stats", "absent"], "no such folder"),
        (["stats", "others"], "is not the output of a run"),
        (["verify", "others"], "is not the output of a run"),
        (["shard", "others"], "neither the output of a run"),
        (["check", "nothing"], "no pipeline 'nothing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_status_2_on_one_screen(place: Path, words: list[str], says: str) -> None:
    started = time.monotonic()
    done = cutroom(*words, cwd=place)
    took_s = time.monotonic() - started
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 24
    assert took_s < 10  # typically one; a run that started Ray would take longer
    assert not (place / "cutroom-out").exists()


def test_nothing_kept_ends_with_status_1_and_says_which_rule_took_what(place: Path) -> None:
    (place / "strict.yaml").write_text("p:\n  stages: [decode, motion]\n  keep: {motion_score: {min: 99}}\n")
    done = cutroom("run", "p", "--config", "strict.yaml", "--input", "footage/pan.mp4", "--engine", "local", cwd=place)
    assert done.returncode == 1
    assert "Nothing was kept (motion_score took 1). Loosen a rule and run again." in done.stdout
    assert "Clips that failed" not in done.stdout


def test_only_broken_files_end_with_status_1(place: Path) -> None:
    done = cutroom("run", "weight_free", "--input", "footage/broken_noise.mp4", "--engine", "local", cwd=place)
    assert done.returncode == 1
    assert "cannot be opened" in done.stdout
    assert "Nothing was kept (no clip was found).\n" in done.stdout, "no rule is to blame"


@pytest.fixture
def captioned(place: Path) -> Path:
    """Pipelines of one film whose captioners answer badly."""
    (place / "writers.py").write_text(
        "def away(request): raise RuntimeError('no [mood]')\n\ndef dumb(request): return ' '\n"
    )
    decode = "decode: {detector: none, max_clip_s: 1, grid_s: 1}"
    (place / "captions.yaml").write_text(
        "".join(
            f"{name}:\n  stages:\n    - {decode}\n    - caption: {{version: direct, model: 'writers:{name}'}}\n"
            for name in ("away", "dumb")
        )
        + f"none:\n  stages:\n    - {decode}\n"
    )
    return place


def run_captions(name: str, place: Path) -> subprocess.CompletedProcess[str]:
    words = ["--config", "captions.yaml", "--input", "footage/pan.mp4", "--engine", "local", "--no-shards"]
    return cutroom("run", name, *words, cwd=place)


def test_what_failed_for_all_clips_is_said_with_its_count(captioned: Path) -> None:
    done = run_captions("away", captioned)
    assert done.returncode == 1
    count = Store(captioned / "cutroom-out").clips().num_rows
    assert count > 1
    assert f"  {count} of {count}: caption: RuntimeError: no [mood]\n" in done.stdout
    assert f"Nothing was kept ({count} clips failed).\n" in done.stdout
    assert "tried again with --retry-failed" in done.stdout


@pytest.mark.parametrize(("name", "says"), [("dumb", "the model said nothing"), ("none", "put name.txt or name.json")])
def test_what_to_do_about_missing_captions_depends_on_who_was_asked(captioned: Path, name: str, says: str) -> None:
    done = run_captions(name, captioned)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "kept clips have no caption" in line]
    assert says in line
    assert ("beside the videos" in line) == (name == "none")


def test_stats_say_the_same_as_the_table(finished: Path) -> None:
    stats = json.loads(cutroom("stats", finished, "--json").stdout)
    assert stats["videos"] == {"in": 14, "done": 13, "failed": 1}
    assert stats["clips"]["kept"] == stats["shards"]["samples"] == 17
    assert stats["rejected_by"] == {"duration_s": 1, "still_share": 1, "border_area": 1, "motion_p90": 1}
    assert stats["scores"]["still_share"]["max"] == 1.0
    assert stats["scores"]["motion_score"]["unknown"] == 1
    shown = cutroom("stats", finished)
    assert shown.returncode == 0
    assert "by border_area" in shown.stdout


def test_verify_is_content_with_a_finished_run_and_not_with_a_harmed_one(finished: Path, tmp_path: Path) -> None:
    import shutil

    assert cutroom("verify", finished).returncode == 0
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "shards" / "000000.tar").unlink()
    harmed = cutroom("verify", tmp_path / "out", "--json")
    assert harmed.returncode == 1
    assert any("000000.tar is missing" in problem for problem in json.loads(harmed.stdout)["problems"])


def test_check_lists_every_pipeline_and_its_rules() -> None:
    plans = {plan["pipeline"]: plan for plan in json.loads(cutroom("check", "--json").stdout)}
    assert {"weight_free", "as_is"} <= set(plans)
    assert plans["weight_free"]["keep"]["still_share"]["max"] == 0.9
    assert "while decoding" in cutroom("check", "weight_free").stdout


@pytest.mark.slow
def test_a_pipeline_that_lacks_a_package_is_listed_with_the_command_that_brings_it(place: Path) -> None:
    (place / "lacking.py").write_text(
        "from curation.stage import Stage\n\nclass Lacking(Stage):\n"
        "    name, extra, packages = 'lacking', 'text', ('no_such_package',)\n"
    )
    (place / "two.yaml").write_text("one:\n  stages: [decode]\ntwo:\n  stages: [decode, lacking:Lacking]\n")
    says = (
        "two.yaml:4:20: stage 'lacking:Lacking' needs no_such_package, not installed here: pip install 'cutroom[text]'"
    )
    listed = cutroom("check", "--config", "two.yaml", cwd=place)
    assert listed.returncode == 0
    assert "one: ok" in listed.stdout
    assert says in listed.stdout
    plans = json.loads(cutroom("check", "--config", "two.yaml", "--json", cwd=place).stdout)
    assert plans[1] == {"pipeline": "two", "missing": says}
    for words in (["check", "two"], ["run", "two", "--input", "footage"]):
        done = cutroom(*words, "--config", "two.yaml", cwd=place)
        assert done.returncode == 2
        assert says in done.stderr


@pytest.mark.slow
def test_no_shards_stops_at_the_table_and_limit_takes_the_first(place: Path) -> None:
    words = [*RUN, "--engine", "local", "--no-shards", "--limit", "1", "--json"]
    summary = json.loads(cutroom(*words, cwd=place).stdout)
    assert summary["videos"]["in"] == 1
    assert summary["shards"]["samples"] == 0
    assert not (place / "cutroom-out" / "shards").exists()
    later = json.loads(cutroom("shard", "cutroom-out", "--engine", "local", "--json", cwd=place).stdout)
    assert later["shards"]["samples"] == later["clips"]["kept"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_the_demo_runs_from_footage_to_captions_and_samples(tmp_path: Path) -> None:
    done = cutroom("demo", "--output", tmp_path / "demo", timeout_s=1200)
    assert done.returncode == 0, done.stderr
    assert "17 samples" in done.stdout
    assert cutroom("verify", tmp_path / "demo" / "out").returncode == 0
    agreement = said_of_captions(done.stdout)
    assert min(agreement["colour"], agreement["background"]) >= 60, agreement
    start, end = (float(value) for value in re.findall(r"the (?:start|end): ([\d.]+) dB", done.stdout))
    assert end > start + 2  # even where other work slows it down
    before, after = (float(value) for value in re.findall(r"timesteps and noise: ([\d.]+) -> ([\d.]+)", done.stdout)[0])
    assert after < before / 2
    assert len(list((tmp_path / "demo" / "training" / "samples").glob("*.mp4"))) == 3
    again = cutroom("demo", "--output", tmp_path / "demo", "--engine", "local", timeout_s=600)
    assert again.returncode == 0, again.stderr
    assert len(re.findall(r"^   A .* there: ", again.stdout, re.MULTILINE)) == 3
    assert "is finished already" in again.stdout
    assert said_of_captions(again.stdout) == agreement


def said_of_captions(stdout: str) -> dict[str, int]:
    """Percent of clips on which both versions agree, by attribute; and three clips are shown with both captions."""
    assert len(re.findall(r"film_\d+\.mp4 \d+-\d+ s; contact sheet: \S+\.parquet", stdout)) == 3
    for version in ("v1", "v2"):
        assert len(re.findall(rf"^    {version} .*A \w+ \w+ moves \w+ across a ", stdout, re.MULTILINE)) == 3
    line = next(line for line in stdout.splitlines() if line.startswith("Both say the same: "))
    return {name: int(share) for name, share in re.findall(r"(\w+) (\d+)%", line)}
