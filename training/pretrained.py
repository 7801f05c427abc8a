"""Published weights: a folder on this machine, or a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from curation.errors import UsageError, one_line
from curation.model_files import is_path

# A repository of one model has it at the top. No pattern may match a folder's name: ``*`` would reach into it.
_AT_THE_TOP = (
    "config.json",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.safetensors.index.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_IN_PARTS = ("*.json", "*.safetensors", "*.model")


def fetch(source: str, *parts: str) -> Path:
    """The folder of a model; from the hub it is downloaded once.

    Args:
        source: a folder, or ``ORGANISATION/NAME`` of a repository.
        parts: the folders of a whole pipeline that are wanted, such as ``vae``.

    Raises:
        UsageError: it is neither here nor to be had.
    """
    if is_path(source):
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    patterns = [*_AT_THE_TOP, *(f"{part}/{name}" for part in parts for name in _IN_PARTS)]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # offline, no such repository, not allowed
        raise UsageError(
            f"{source} is no folder here and cannot be had from the Hugging Face hub ({one_line(error)}): "
            f"hf download {source} where there is a network, and name the folder"
        ) from error
