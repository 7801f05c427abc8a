"""Whether what is shown stays itself: how alike a video's frames are to an image encoder, as VBench measures it.

By DINO, which tells one thing from another of its kind, it is VBench's "subject consistency"; by CLIP its "background
consistency", which others call frame consistency (Huang et al., CVPR 2024).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from curation import model_files
from curation.bars import no_bars
from curation.errors import StageError, one_line
from curation.model_files import MissingWeightsError, check_safetensors, check_weights
from curation.stage import known
from filters import pictures

DINO = "facebook/dino-vitb16"  # VBench's: ViT-B/16 of Caron et al. 2021
PACKAGES = ("huggingface_hub", "torch", "torchvision", "transformers")
_FILES = ("config.json", "preprocessor_config.json")
_OLDER = "pytorch_model.bin"


class Dino(NamedTuple):
    """A loaded encoder with what prepares its inputs."""

    model: Any
    processor: Any
    device: str


def consistency(vectors: np.ndarray) -> float | None:
    """Of frames' embeddings of length 1, T D: mean cosine of each to the first frame and to the one before it, 0..1.

    Negative cosines count as 0, as in VBench. Unknown for a single frame.
    """
    if len(vectors) < 2:
        return None
    to_first = np.maximum(vectors[1:] @ vectors[0], 0.0)
    to_before = np.maximum((vectors[1:] * vectors[:-1]).sum(axis=1), 0.0)
    score: float | None = known(float(np.mean((to_first + to_before) / 2)))
    return score


def check(model: str) -> None:
    """Raise MissingWeightsError where ``load`` could not find a model, without loading it."""
    check_weights(model, _FILES)
    try:
        check_safetensors(model)
    except MissingWeightsError:
        check_weights(model, [_OLDER])


def is_here(model: str) -> bool:
    """Whether all of a model is on this machine, so that nothing would be downloaded."""
    weights = any(model_files.is_here(model, name) for name in ("model.safetensors", _OLDER))
    return weights and all(model_files.is_here(model, name) for name in _FILES)


def identity(model: str) -> str:
    """What a model is known by."""
    return model_files.identity(model, "*.json", "*.safetensors", _OLDER)


@functools.cache
def load(model: str, gpu: bool, threads: int) -> Dino:
    """Load a model of transformers whose first token stands for the picture (DINO, DINOv2), once per process.

    Raises:
        StageError: it cannot be loaded here, which is no video's fault.
    """
    from curation.torchvision import mend

    mend()
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    if gpu and not torch.cuda.is_available():
        raise StageError(f"{model} asks for a GPU and there is none here; leave it out for the CPU")
    torch.set_num_threads(threads)
    device = "cuda" if gpu else "cpu"
    try:
        with no_bars():
            # PIL, because the processors of torchvision resize a little differently from release to release.
            processor = AutoImageProcessor.from_pretrained(model, backend="pil", trust_remote_code=False)
            # A ViT would get a pooler behind the first token that is not used and that DINO's files do not have.
            kind = AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
            without = {"add_pooling_layer": False} if kind == "vit" else {}
            loaded, info = AutoModel.from_pretrained(
                model, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **without
            )
    except Exception as error:  # damaged weights may raise anything
        raise StageError(f"{model} cannot be loaded: {one_line(error)}") from error
    if lost := sorted(info["missing_keys"]):
        raise StageError(f"the weights of {model} lack {', '.join(lost[:3])}: transformers would make them up")
    return Dino(loaded.to(device).eval(), processor, device)


def embed_pictures(
    model: str, jpegs: Sequence[bytes], *, gpu: bool = False, threads: int = 1, batch: int = 16
) -> Iterator[np.ndarray]:
    """Embeddings of length 1 of pictures, float32 D, one after the other: the encoder's first token."""

    def encode(some: list[Any]) -> Any:
        loaded = load(model, gpu, threads)
        import torch

        inputs = loaded.processor(images=some, return_tensors="pt").to(loaded.device)
        tokens = loaded.model(**inputs).last_hidden_state  # B L D
        return torch.nn.functional.normalize(tokens[:, 0].float(), dim=-1)

    return pictures.embed(encode, jpegs, batch=batch)
