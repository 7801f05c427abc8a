"""Context parallelism and FSDP2 against one process: losses and gradients to 1e-10, and tests that can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.vae_helpers import apart, tiny
from tests.training.vae_ranks import Case, on_ranks, one_process, several, undivided
from training.vae.parallel import context_parallel, split_frames

TWO = {
    "17 frames": Case(),
    "9 frames": Case(frames=9),
    "one frame on rank 0": Case(frames=9, spans=(1, 8)),
    "one latent each": Case(frames=5),
    "one latent on rank 1": Case(frames=17, spans=(13, 4)),
    "checkpointed": Case(checkpoint=True),
    "sharded too": Case(sharded=True),
    "data times context": Case(mesh=True),
    "sharded and checkpointed": Case(checkpoint=True, sharded=True),
}
THREE = {
    "one latent each": Case(frames=9),
    "21 frames": Case(frames=21),
    "uneven": Case(frames=21, spans=(5, 4, 12)),
    "one latent between": Case(frames=25, spans=(9, 4, 12), checkpoint=True),
}
BROKEN = {"halo": Case(halo_gradient=False), "norm": Case(norm_gradient=False)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, several, {**TWO, **BROKEN}, folder=tmp_path_factory.mktemp("two") / "ranks")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(3, several, THREE, folder=tmp_path_factory.mktemp("three") / "ranks")


def distances(ranks: list[dict[str, Tensor]], frames: int) -> dict[str, float]:
    """How far loss, reconstruction and each gradient are from those of one process, relative to the largest value."""
    reference = one_process(frames)
    assert all(rank.keys() == reference.keys() for rank in ranks)
    far = {}
    for name, value in reference.items():
        pieces = [rank[name] for rank in ranks]
        if name in ("x", "reconstruction", "evaluated"):
            pieces = [torch.cat(pieces, dim=2)]  # each rank has its span
        far[name] = max(apart(piece / value.abs().max(), value / value.abs().max()) for piece in pieces)
    return far


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_ranks_equal_one_process(name: str, two: list[dict[str, Any]]) -> None:
    far = distances([rank[name] for rank in two], TWO[name].frames)
    assert max(far.values()) < 1e-10, far


@pytest.mark.slow
@pytest.mark.parametrize("name", THREE)
def test_three_ranks_equal_one_process(name: str, three: list[dict[str, Any]]) -> None:
    far = distances([rank[name] for rank in three], THREE[name].frames)
    assert max(far.values()) < 1e-10, far


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_the_comparison_finds_a_gradient_that_does_not_cross_ranks(name: str, two: list[dict[str, Any]]) -> None:
    far = distances([rank[name] for rank in two], BROKEN[name].frames)
    assert far["loss"] < 1e-10 and far["reconstruction"] < 1e-10  # the forward pass is right
    wrong = [parameter for parameter in far if far[parameter] > 1e-3]
    assert len(wrong) > 20 and far["encoder.conv_in.conv.weight"] > 1e-3


@pytest.mark.slow
def test_every_rank_is_told_what_cannot_be_split(two: list[dict[str, Any]]) -> None:
    first, second = (rank["refusals"] for rank in two)
    assert first == second
    assert "the ranks hold [9, 6] frames; rank 0 must hold 4k+1 and every other 4k" in first["split latent"]
    assert "[8, 8]" in first["no first frame"]
    assert "[9, 0] frames" in first["no frames"] and "at least 4" in first["no frames"]
    assert "[2, 0]" in first["no latents"]
    assert "leave out chunks" in first["chunks"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "checkpointed"])
def test_fsdp2_equals_one_process(checkpoint: bool, two: list[dict[str, Any]]) -> None:
    reference = undivided()
    for rank in (results[f"data parallel {checkpoint}"] for results in two):
        assert rank.keys() == reference.keys()
        far = {name: apart(rank[name], value) for name, value in reference.items()}
        assert max(far.values()) < 1e-10, far


@pytest.mark.parametrize(
    ("frames", "ranks", "spans"),
    [
        (1, 1, [(0, 1)]),
        (5, 2, [(0, 1), (1, 5)]),
        (17, 2, [(0, 9), (9, 17)]),
        (49, 4, [(0, 13), (13, 25), (25, 37), (37, 49)]),
        (161, 8, [(0, 21), (21, 41), *((start, start + 20) for start in range(41, 161, 20))]),
    ],
)
def test_frames_are_split_between_latents(frames: int, ranks: int, spans: list[tuple[int, int]]) -> None:
    assert split_frames(frames, ranks) == [slice(*span) for span in spans]


def test_frames_that_do_not_reach_all_ranks_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"9 frames are 3 latents: too few for 4 ranks.* at least 13 frames, or .* 3 ranks"
    ):
        split_frames(9, 4)
    with pytest.raises(ValueError, match="not 10; the nearest it takes are 9 and 13"):
        split_frames(10, 2)


def test_context_parallelism_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group, or start by torchrun"), context_parallel(tiny()):
        pass
