"""Texts to embeddings before anything else is loaded; and embeddings saved, to sample where there is no T5.

texts = embed("cogvideox-5b", ["a red ball"], tokens=226, dtype="bf16", device=device)
save(file, texts)
read(file)["a red ball"]   # (L, D)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curation.errors import UsageError, nearest
from curation.files import aside
from training.transformer.config import TransformerConfig
from training.transformer.models import DTYPES
from training.transformer.text import TextEncoder

_TEXTS = "texts"


def embed(
    source: str, texts: Sequence[str], *, config: TransformerConfig, dtype: str, device: torch.device
) -> dict[str, Tensor]:
    """The embeddings (L, D) of texts, by text, on the CPU. The encoder is loaded, used, and gone again.

    Raises:
        UsageError: there is no encoder, or the transformer reads those of another.
    """
    encoder = TextEncoder.from_pretrained(source, tokens=config.max_text_seq_length, dtype=DTYPES[dtype])
    width = int(encoder.encoder.config.hidden_size)
    if width != config.text_embed_dim:
        raise UsageError(
            f"the text encoder in {source} gives {width} numbers a token, and the transformer reads "
            f"{config.text_embed_dim}: name the one that it was trained with"
        )
    encoder.encoder.to(device)
    # One at a time: a text's embedding does not depend on its company, not even in the last bit.
    found = {text: encoder([text])[0].cpu() for text in dict.fromkeys(texts)}
    encoder.encoder.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the models that come next
    return found


def save(file: Path, texts: Mapping[str, Tensor]) -> None:
    """Write embeddings as safetensors; ``texts`` in the file's metadata lists them in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {f"text.{number:06}": tensor.contiguous() for number, tensor in enumerate(texts.values())}
    with aside(file) as other:
        save_file(named, other, metadata={_TEXTS: json.dumps(list(texts), ensure_ascii=False)})


def read(file: Path) -> dict[str, Tensor]:
    """What ``save`` wrote. UsageError if it is no such file."""
    try:
        with safe_open(file, framework="pt") as held:
            texts = json.loads((held.metadata() or {})[_TEXTS])
            return {text: held.get_tensor(f"text.{number:06}") for number, text in enumerate(texts)}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} holds no embeddings that --save-embeddings wrote ({error})") from error


def check(file: Path, texts: Mapping[str, Tensor], wanted: Sequence[str], *, config: TransformerConfig) -> None:
    """Raise UsageError unless the embeddings in ``file`` are those of ``wanted``, and of this transformer's width."""
    for text in wanted:
        if text not in texts:
            raise UsageError(f"{file} holds no embedding of {text!r}.{nearest(text, texts)}")
    for tensor in texts.values():
        if tensor.ndim != 2 or tensor.shape[1] != config.text_embed_dim:
            raise UsageError(
                f"{file} holds embeddings of {tuple(tensor.shape)}; this transformer reads (tokens, "
                f"{config.text_embed_dim})"
            )
