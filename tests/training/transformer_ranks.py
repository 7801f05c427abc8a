"""What the processes of the transformer's parallel tests do. In a module of its own, for new processes to import."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from curation.errors import UsageError
from tests.training.sums import sum_gradients
from tests.training.transformer_helpers import TINY, noise, tiny
from training.transformer.diffusion import losses
from training.transformer.model import Transformer, blocks, checkpoint_blocks
from training.transformer.parallel import context_parallel

CASES = ["2b batch", "5b batch", "5b pack", "5b pack checkpointed", "5b_i2v batch", "5b_v1_5_i2v pack"]


def inputs(case: str, seed: int = 0) -> dict[str, Any]:
    """What the transformer is given, in fp64; sizes that two ranks cannot share evenly."""
    config = TINY[case.split()[0]]
    frames, t = 3 * config.time_patch, torch.tensor([999, 300])
    if "pack" in case:
        shapes = [(frames, config.in_channels, 6, 10), (config.time_patch, config.in_channels, 2, 2)]
        return {
            "latents": [noise(*shape, seed=seed + i).double() for i, shape in enumerate(shapes)],
            "text": [noise(words, 12, seed=seed + 9 + i).double() for i, words in enumerate((5, 2))],
            "t": t,
            "clean": [torch.arange(shape[0]) < config.time_patch for shape in shapes],
        }
    latents = noise(2, frames, config.in_channels, 8, 12, seed=seed).double()
    return {"latents": latents, "text": noise(2, 5, 12, seed=seed + 9).double(), "t": t}


def loss(transformer: Transformer, given: dict[str, Any]) -> Tensor:
    """The mean over samples of how far the output is from its negative input."""
    out = transformer(**given)
    if isinstance(out, Tensor):
        return losses(out, -given["latents"][:, :, : out.shape[2]]).mean()
    target = [-x[:, : y.shape[1]] for x, y in zip(given["latents"], out, strict=True)]
    return losses(out, target, clean=given["clean"]).mean()


def gradients(transformer: Transformer) -> dict[str, Tensor]:
    """Whole gradients, also of what is sharded."""
    found = {}
    for name, parameter in transformer.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).detach()
    return found


def built(case: str) -> Transformer:
    transformer = tiny(case.split()[0], dtype=torch.float64)
    if "checkpointed" in case:
        checkpoint_blocks(transformer)
    return transformer


def _sharded(case: str) -> Transformer:
    transformer = built(case)
    for block in blocks(transformer):
        fully_shard(block)
    fully_shard(transformer)
    return transformer


def work() -> dict[str, Any]:
    """All that is measured on this rank, in one process, since starting it takes longest."""
    warnings.filterwarnings("ignore", message=".*barrier.*")
    found: dict[str, Any] = {}
    for case in CASES:
        transformer = built(case)
        with context_parallel(transformer):
            value = loss(transformer, inputs(case))
            value.backward()
        sum_gradients(transformer)
        found[case] = (value.detach(), gradients(transformer))
    rank, size = dist.get_rank(), dist.get_world_size()
    transformer = _sharded("5b pack")  # each rank a pack of its own
    value = loss(transformer, inputs("5b pack", seed=50 * rank))
    value.backward()
    found["fsdp2"] = (value.detach(), gradients(transformer))
    transformer = _sharded("5b pack")  # both ranks share one
    with context_parallel(transformer):
        value = loss(transformer, inputs("5b pack"))
        (value * size).backward()
    found["fsdp2 and context"] = (value.detach(), gradients(transformer))
    try:
        with context_parallel(Transformer(TINY["5b"].__class__(num_attention_heads=1, num_layers=1))):
            pass
    except UsageError as error:
        found["refused"] = str(error)
    return found
