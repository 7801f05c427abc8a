"""Published weights: a folder on this machine, or a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from curation.errors import UsageError, one_line
from curation.model_files import is_path


def fetch(source: str, *, part: str) -> Path:
    """The folder of a model; from the hub it is downloaded once.

    Args:
        source: a folder, or ``ORGANISATION/NAME`` of a repository.
        part: the folder of a whole pipeline that is wanted, such as ``vae``.

    Raises:
        UsageError: it is neither here nor to be had.
    """
    if is_path(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    patterns = [*wanted, *(f"{part}/{name}" for name in wanted)]
    try:
        # A repository of one model has its weights at the top; of a pipeline's, only the part's folder is wanted.
        others = ["transformer/*", "text_encoder/*"] if part == "vae" else ["vae/*", "text_encoder/*"]
        return Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=others))
    except Exception as error:  # offline, no such repository, not allowed
        raise UsageError(
            f"{source} is no folder here and cannot be had from the Hugging Face hub ({one_line(error)}): "
            f"hf download {source} --include '{part}/*' where there is a network, and name the folder"
        ) from error
