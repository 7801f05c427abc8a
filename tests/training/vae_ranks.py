"""What the processes of the tests of parallel training do. In a module of its own, for new processes to import."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from tests.training.sums import mean_share, sum_gradients, total
from tests.training.vae_helpers import TINY, tiny, video
from training.vae import parallel
from training.vae.config import Chunks
from training.vae.gaussian import Gaussian
from training.vae.model import VAE, blocks, checkpoint_blocks
from training.vae.parallel import context_parallel, split_frames


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step on one batch of videos, in float64."""

    frames: int = 17
    spans: tuple[int, ...] | None = None  # frames of each rank; None: as split_frames has it
    halo_gradient: bool = True
    norm_gradient: bool = True
    checkpoint: bool = False
    sharded: bool = False  # FSDP2 over the ranks that share the video
    mesh: bool = False  # FSDP2 over other ranks: a mesh of data times context


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """Run ``function(rank, *arguments)`` on ``ranks`` new gloo processes; what each of them returned."""
    folder.mkdir()
    mp.spawn(_enter, args=(ranks, folder, function, arguments), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _enter(rank: int, ranks: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")  # as in the tests' own process
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a name in /etc/hosts may lead elsewhere
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=ranks)
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def batch(frames: int) -> tuple[Tensor, Tensor]:
    """Two videos, and the noise for their latents."""
    return video(2, 3, frames, 16, 16).double(), video(2, TINY.latent_channels, frames // 4 + 1, 2, 2, seed=9).double()


def loss_parts(vae: VAE, x: Tensor, noise: Tensor) -> tuple[Tensor, Gaussian, Tensor]:
    """Reconstruction, its Gaussian, and the part of the loss that is a sum over frames."""
    posterior = vae.encode(x)
    reconstruction = vae.decode(posterior.mean + posterior.std * noise)
    return reconstruction, posterior, 0.01 * posterior.kl().mean()


def one_process(frames: int) -> dict[str, Tensor]:
    """The step in one process: loss, reconstruction and every gradient."""
    vae = tiny().double()
    x, noise = batch(frames)
    x.requires_grad_()
    reconstruction, _, kl = loss_parts(vae, x, noise)
    loss = (reconstruction - x).abs().mean() + (reconstruction - x).square().mean() + kl
    loss.backward()
    results = {"loss": loss.detach(), "reconstruction": reconstruction.detach(), "x": x.grad, **_gradients(vae)}
    return {**results, "evaluated": reconstruction.detach()}


def several(rank: int, cases: dict[str, Case]) -> dict[str, Any]:
    """Every case, one after the other; what is refused; and FSDP2 without context parallelism."""
    results: dict[str, Any] = {name: in_parallel(rank, case) for name, case in cases.items()}
    if dist.get_world_size() == 2:
        results["refusals"] = refusals(rank)
        results |= {f"data parallel {checkpoint}": data_parallel(rank, checkpoint) for checkpoint in (False, True)}
    return results


def in_parallel(rank: int, case: Case) -> dict[str, Tensor]:
    """The same step as ``one_process`` over all ranks."""
    extend, norm = parallel.Extend.backward, parallel.SharedGroupNorm.backward
    if not case.halo_gradient:
        parallel.Extend.backward = staticmethod(_forget_the_halo)
    if not case.norm_gradient:
        parallel.SharedGroupNorm.backward = staticmethod(_forget_the_others)
    try:
        return _in_parallel(rank, case)
    finally:
        parallel.Extend.backward, parallel.SharedGroupNorm.backward = staticmethod(extend), staticmethod(norm)


def _in_parallel(rank: int, case: Case) -> dict[str, Tensor]:
    ranks = dist.get_world_size()
    spans = split_frames(case.frames, ranks)
    if case.spans:
        edges = [sum(case.spans[:index]) for index in range(ranks + 1)]
        spans = [slice(start, stop) for start, stop in zip(edges, edges[1:])]  # noqa: B905, RUF007
    span = spans[rank]
    vae = tiny().double()
    if case.checkpoint:
        checkpoint_blocks(vae)
    group = None
    if case.sharded:
        shard(vae)
    if case.mesh:
        mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("data", "context"))
        shard(vae, mesh=mesh["data"])
        group = mesh["context"].get_group()
    x, noise = batch(case.frames)
    x, noise = x[:, :, span].clone().requires_grad_(), noise[:, :, (span.start + 3) // 4 : (span.stop + 3) // 4]
    with context_parallel(vae, group):
        reconstruction, _, kl = loss_parts(vae, x, noise)
        with torch.no_grad():
            evaluated, _, _ = loss_parts(vae, x, noise)
    difference = reconstruction - x
    loss = mean_share(difference.abs(), group) + mean_share(difference.square(), group) + kl
    if case.sharded:
        (loss * ranks).backward()  # FSDP2 averages
        assert x.grad is not None
        x.grad /= ranks
    else:
        loss.backward()
        sum_gradients(vae, group)
    assert x.grad is not None
    results = {"loss": total(loss, group), "reconstruction": reconstruction.detach(), "x": x.grad, **_gradients(vae)}
    return {**results, "evaluated": evaluated}


def shard(vae: VAE, *, mesh: DeviceMesh | None = None) -> None:
    """FSDP2 as a trainer applies it: every residual block, then the rest."""
    for block in blocks(vae):
        fully_shard(block, mesh=mesh)
    fully_shard(vae, mesh=mesh)
    for method in ("encode", "decode"):
        register_fsdp_forward_method(vae, method)


def _gradients(vae: VAE) -> dict[str, Tensor]:
    gradients = {name: parameter.grad for name, parameter in vae.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items() if g is not None}


def _forget_the_halo(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """The backward of CogVideoX's released code: what was sent to the next rank earns no gradient."""
    own = grad[:, :, ctx.frames :].clone()
    if ctx.group.rank() == 0:
        own[:, :, 0] += grad[:, :, : ctx.frames].sum(2)
    return own, None, None


def _forget_the_others(ctx: Any, grad: Tensor) -> Any:
    """A GroupNorm whose backward holds mean and variance for functions of this rank's frames alone."""
    x, weight, mean, rstd, count = ctx.saved_tensors
    shape = (*mean.shape, -1)
    normed = (x.reshape(shape) - mean[..., None]) * rstd[..., None]
    scaled = (grad * weight[:, None, None, None]).reshape(shape)
    n = count[..., None]
    inner = scaled - scaled.sum(2, keepdim=True) / n - normed * (scaled * normed).sum(2, keepdim=True) / n
    by_weight = (grad * normed.view_as(grad)).sum((0, 2, 3, 4))
    return (inner * rstd[..., None]).view_as(x), by_weight, grad.sum((0, 2, 3, 4)), None, None, None


def refusals(rank: int) -> dict[str, str]:
    """What every rank is told of spans that cannot be, and of chunks."""
    vae, said = tiny(), {}
    attempts: dict[str, Callable[[], object]] = {
        "split latent": lambda: vae.encode(video(1, 3, 9 if rank == 0 else 6, 8, 8)),
        "no first frame": lambda: vae.encode(video(1, 3, 8, 8, 8)),
        "no frames": lambda: vae.encode(video(1, 3, 9 if rank == 0 else 0, 8, 8)),
        "no latents": lambda: vae.decode(video(1, 3, 2 if rank == 0 else 0, 1, 1)),
        "chunks": lambda: vae.encode(video(1, 3, 17 if rank == 0 else 16, 8, 8), chunks=Chunks()),
    }
    for name, attempt in attempts.items():
        try:
            with context_parallel(vae):
                attempt()
        except ValueError as error:
            said[name] = str(error)
    return said


def data_parallel(rank: int, checkpoint: bool) -> dict[str, Tensor]:
    """Two steps of AdamW under FSDP2, each rank with its own video; the last gradients, and the weights after."""
    vae = tiny().double()
    if checkpoint:
        checkpoint_blocks(vae)
    shard(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-2)
    x = batch(9)[0][rank : rank + 1]
    return _steps(vae, optimizer, x)


def undivided() -> dict[str, Tensor]:
    """The same two steps in one process on both videos."""
    vae = tiny().double()
    return _steps(vae, torch.optim.AdamW(vae.parameters(), lr=1e-2), batch(9)[0])


def _steps(vae: VAE, optimizer: torch.optim.Optimizer, x: Tensor) -> dict[str, Tensor]:
    for _ in range(2):
        optimizer.zero_grad()
        posterior = vae.encode(x)
        reconstruction = vae.decode(posterior.mean)
        ((reconstruction - x).square().mean() + 0.01 * posterior.kl().mean()).backward()
        optimizer.step()
    weights = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in vae.named_parameters()}
    return {**_gradients(vae), **{f"weight {name}": value.detach() for name, value in weights.items()}}
