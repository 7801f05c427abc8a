"""CLIP models by open_clip: where they come from, and loading them once per process.

A model is the id of a repository on the Hugging Face hub or a folder on this machine, with an ``open_clip_config.json``
and the weights beside it: what open_clip publishes and what its ``push_to_hf_hub`` writes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation import model_files
from curation.errors import StageError, UsageError, one_line
from curation.model_files import MissingWeightsError, check_weights, fetch_weights, is_path
from filters import pictures

DEFAULT = "timm/vit_large_patch14_clip_224.openai"  # CLIP ViT-L/14 of Radford et al. 2021: what others' scores are by
CONFIG = "open_clip_config.json"
_WIDEST = 1 << 16  # numbers in an embedding
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class Clip(NamedTuple):
    """A loaded model with what prepares its inputs."""

    model: Any
    transform: Any  # a PIL picture to 3 H W
    tokenizer: Any
    device: str


def identity(model: str) -> str:
    """What embeddings of this model are known by."""
    return model_files.identity(model, CONFIG, *_WEIGHTS)


def width(model: str) -> int:
    """How many numbers the model's embeddings have.

    Raises:
        MissingWeightsError: the model is not there. UsageError: it is none of open_clip's.
    """
    path = fetch_weights(model, CONFIG)  # a few kilobytes
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]["embed_dim"]
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= _WIDEST:
            raise ValueError(f"embed_dim is {str(found)[:40]}")
        return found
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is no configuration of an open_clip model: {one_line(error)}") from error


def check(model: str) -> None:
    """Raise what ``load`` would for a model that is not there, without loading it."""
    check_weights(model, [CONFIG])  # asks once where `width` would try to download again and again
    width(model)
    try:
        check_weights(model, _WEIGHTS[:1])
    except MissingWeightsError:
        check_weights(model, _WEIGHTS[1:])  # the older form


def is_here(model: str) -> bool:
    """Whether all of a model is on this machine, so that nothing would be downloaded."""
    here = {name for name in (CONFIG, *_WEIGHTS) if model_files.is_here(model, name)}
    return CONFIG in here and len(here) > 1


def encoder_of(columns: pa.Schema) -> str | None:
    """The identity of the model of the column ``embedding``, as far as its metadata say."""
    return (columns.field("embedding").metadata or {}).get(b"encoder", b"").decode() or None


@functools.cache
def load(model: str, gpu: bool, threads: int) -> Clip:
    """Load a model, once per process: in fp16 on the GPU, in fp32 on the CPU.

    Raises:
        StageError: it cannot be loaded here, which is no clip's fault.
    """
    from curation.torchvision import mend

    mend()
    import open_clip
    import torch

    torch.set_num_threads(threads)
    name = f"local-dir:{model}" if is_path(model) else f"hf-hub:{model}"
    device = "cuda" if gpu else "cpu"
    if gpu and not torch.cuda.is_available():
        raise StageError(f"{model} asks for a GPU and this worker has none; leave gpus out for the CPU")
    try:
        loaded, transform = open_clip.create_model_from_pretrained(
            name, device=device, precision="fp16" if gpu else "fp32", weights_only=True
        )
        return Clip(loaded.eval(), transform, open_clip.get_tokenizer(name), device)
    except Exception as error:  # damaged weights may raise anything
        raise StageError(f"{model} cannot be loaded: {one_line(error)}") from error


def embed_pictures(
    model: str, jpegs: Sequence[bytes], *, gpu: bool = False, threads: int = 1, batch: int = 32
) -> Iterator[np.ndarray]:
    """Embeddings of length 1 of pictures, float32 D, one after the other; so many are computed together.

    Raises:
        StageError: the weights give no numbers.
    """

    def encode(some: list[Any]) -> Any:
        loaded = load(model, gpu, threads)
        import torch

        inputs = torch.stack([loaded.transform(picture) for picture in some])
        return loaded.model.encode_image(
            inputs.to(loaded.device, next(loaded.model.parameters()).dtype), normalize=True
        )

    return (_numbers(model, vector) for vector in pictures.embed(encode, jpegs, batch=batch))


def embed_texts(model: str, texts: Sequence[str], *, gpu: bool = False, threads: int = 1) -> np.ndarray:
    """Embeddings of length 1 of texts, float32 B D. Of more than 77 tokens only the beginning counts.

    On the CPU each is computed by itself: batches gain nothing there, and the same text would no longer give the same
    bits.

    Raises:
        StageError: the weights give no numbers.
    """
    import torch

    loaded = load(model, gpu, threads)
    tokens = loaded.tokenizer(list(texts)).to(loaded.device)
    with torch.inference_mode():
        parts = [loaded.model.encode_text(some, normalize=True) for some in ([tokens] if gpu else tokens.split(1))]
        return _numbers(model, torch.cat(parts).float().cpu().numpy())


def _numbers(model: str, vectors: np.ndarray) -> np.ndarray:
    """What a model gives, if it is numbers: damaged weights may load, and no clip is to blame for them."""
    if not np.isfinite(vectors).all():
        raise StageError(f"the weights of {model} give no numbers")
    return vectors
