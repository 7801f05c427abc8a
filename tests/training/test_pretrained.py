"""Of a repository on the hub, what is wanted is downloaded and nothing else."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from curation.errors import UsageError
from training.pretrained import fetch

_PIPELINE = [
    "model_index.json",
    "README.md",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
_ALONE = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
_T5 = ["config.json", "model.safetensors", "pytorch_model.bin", "spiece.model", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("files", "parts", "wanted"),
    [
        (_PIPELINE, ("transformer", "scheduler"), ("transformer/", "scheduler/")),
        (_PIPELINE, ("vae",), ("vae/",)),
        (_PIPELINE, ("text_encoder", "tokenizer"), ("text_encoder/", "tokenizer/")),
        (_ALONE, ("vae",), ("config.json", "diffusion_pytorch_model.safetensors")),
        (_T5, ("text_encoder", "tokenizer"), ("config.json", "model.safetensors", "spiece", "tokenizer_config")),
    ],
)
def test_only_the_parts_that_are_wanted_are_downloaded(
    files: list[str], parts: tuple[str, ...], wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def download(source: str, *, allow_patterns: list[str]) -> str:
        found.extend(filter_repo_objects(files, allow_patterns=allow_patterns))
        return "/there"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch("SOMEONE/MODEL", *parts) == Path("/there")
    assert found == [name for name in files if name.startswith(wanted)]


def test_why_there_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(source: str, *, allow_patterns: list[str]) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(UsageError, match=r"SOMEONE/MODEL is no folder .*no network"):
        fetch("SOMEONE/MODEL", "vae")
