"""How beautiful people find a clip, by a head on CLIP embeddings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curation.errors import UsageError, one_line
from curation.model_files import check_weights, fetch_weights, identity, located
from curation.stage import Stage, known
from filters.clip import encoder_of


@dataclasses.dataclass(kw_only=True)
class Aesthetic(Stage):
    """The LAION aesthetic score, about 1 to 10; 5 is ordinary.

    Writes:
        aesthetic_score: mean over the frames of the contact sheet.
        aesthetic_model: the head, and the encoder that it was applied to.

    Heads: the MLP of https://github.com/christophschuhmann/improved-aesthetic-predictor (768-1024-128-64-16-1) and the
    older single layer of https://github.com/LAION-AI/aesthetic-predictor, both for CLIP ViT-L/14. Neither has anything
    but linear layers (the MLP's dropout does nothing here), so the score of the mean embedding is the mean score.

    Args:
        head: a repository on the Hugging Face hub, or a folder or file.
        file: the weights in it: safetensors, or a state dict of torch.
    """

    head: str = "trl-lib/ddpo-aesthetic-predictor"
    file: str = "aesthetic-model.pth"

    name: ClassVar[str] = "aesthetic"
    extra: ClassVar[str] = "models"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    reads: ClassVar[tuple[str, ...]] = ("embedding",)
    writes: ClassVar[pa.Schema] = pa.schema([("aesthetic_score", pa.float32()), ("aesthetic_model", pa.string())])

    def __post_init__(self) -> None:
        self.head, self._encoder = located(self.head), "an unknown encoder"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "head": identity(self.head, self.file)}

    def check(self) -> None:
        check_weights(self.head, [self.file])

    def check_inputs(self, columns: pa.Schema) -> None:
        self._encoder = encoder_of(columns) or self._encoder
        kind = columns.field("embedding").type
        if pa.types.is_fixed_size_list(kind) and (taken := len(self._load()[0])) != kind.list_size:
            raise UsageError(f"the head {self.head} takes embeddings of {taken} numbers, these have {kind.list_size}")

    def setup(self) -> None:
        self._weights, self._bias = self._load()

    def process(self, clips: pa.Table) -> pa.Table:
        rows, head = list[dict[str, Any]](), identity(self.head, self.file)
        for vector in clips["embedding"]:
            if vector.is_valid:
                score = float(np.asarray(vector.values) @ self._weights + self._bias)
                rows.append({"aesthetic_score": known(score), "aesthetic_model": f"{head} on {self._encoder}"})
            else:
                rows.append(dict.fromkeys(self.writes.names))
        return pa.Table.from_pylist(rows, schema=self.writes)

    def _load(self) -> tuple[np.ndarray, float]:
        """Weights D and bias of the one linear map that the layers are together."""
        path = fetch_weights(self.head, self.file)
        try:
            return as_one_layer(read_tensors(path))
        except Exception as error:  # a file of anything
            raise UsageError(f"{path} is no aesthetic head of linear layers: {one_line(error)}") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of safetensors or of a state dict; nothing else in it is ever executed."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def as_one_layer(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Put linear layers (``...N.weight``, out x in, and ``...N.bias``, in the order of N) together to one.

    Raises:
        ValueError: the layers do not follow on each other, or do not end in one number. KeyError: a bias is missing.
    """
    names = [name.removesuffix("weight") for name in tensors if name.endswith("weight")]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    if not names or len(tensors) != 2 * len(names):
        raise ValueError(f"it holds {', '.join(sorted(tensors)[:6]) or 'nothing'}")
    weights, bias = np.eye(tensors[f"{names[0]}weight"].shape[-1]), np.zeros(tensors[f"{names[0]}weight"].shape[-1])
    for name in names:
        layer = tensors[f"{name}weight"].astype(np.float64)
        weights, bias = layer @ weights, layer @ bias + tensors[f"{name}bias"].astype(np.float64)
    if weights.shape[0] != 1:
        raise ValueError(f"it gives {weights.shape[0]} numbers, not one")
    return weights[0], float(bias[0])
