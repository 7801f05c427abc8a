"""Weights are looked for before any work starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curation.errors import UsageError
from curation.model_files import (
    MissingWeightsError,
    check_safetensors,
    check_weights,
    fetch_weights,
    identity,
    is_path,
)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that cannot be reached, and an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("source", "expected"),
    [("openai/clip", False), ("./openai/clip", True), ("~/clip", True), ("head.safetensors", True), ("/a/b", True)],
)
def test_a_source_is_a_path_or_the_id_of_a_repository(source: str, expected: bool) -> None:
    assert is_path(source) is expected


def test_a_folder_of_two_names_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "clip").mkdir(parents=True)
    assert is_path("models/clip")


def test_a_file_is_found_by_its_own_path_and_by_that_of_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.touch()
    assert fetch_weights(str(file), "head.safetensors") == fetch_weights(str(tmp_path), "head.safetensors") == file
    with pytest.raises(MissingWeightsError, match=r"no weights at .*config\.json; give the path"):
        check_weights(str(tmp_path), ["config.json"])


@pytest.mark.parametrize("look", [lambda s, f: check_weights(s, [f]), fetch_weights])
def test_a_repository_out_of_reach_is_named_with_the_way_to_get_it(look: Any, offline: None) -> None:
    with pytest.raises(MissingWeightsError, match=r"some/model \(config\.json\) are not on this .* `hf download some/"):
        look("some/model", "config.json")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": ["a"]}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1, "b": "c"}}',
        '{"weight_map": {"a": ["b"]}}',
        "[" * 200_000,
    ],
)
def test_an_index_of_weights_that_says_nothing_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UsageError, match=r"model\.safetensors\.index\.json is no index of weights"):
        check_safetensors(str(tmp_path))


def test_files_are_named_within_their_folder(tmp_path: Path) -> None:
    file = tmp_path / "head.pth"
    file.touch()
    for look in (lambda s, f: check_weights(s, [f]), fetch_weights):
        with pytest.raises(UsageError, match=r"head\.pth is a path of its own; name a file within"):
            look(str(tmp_path), str(file))


def test_what_a_model_is_known_by_is_in_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = identity(str(tmp_path), "*.json")
    (tmp_path / "cache.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    assert identity(str(tmp_path), "*.json") == before
    (tmp_path / "config.json").write_text("[]")
    assert identity(str(tmp_path), "*.json") != before


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    found = []
    for text in ("one", "two"):
        (tmp_path / "head[1].pth").write_text(text)
        found.append(identity(str(tmp_path), "head[1].pth"))
    assert found[0] != found[1]


@pytest.mark.slow
def test_torchvision_can_be_imported_beside_a_torch_for_cpus() -> None:
    script = "from curation.torchvision import mend; mend(); mend(); import torchvision.transforms, open_clip, timm"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
