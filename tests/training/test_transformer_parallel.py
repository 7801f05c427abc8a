"""Two ranks give what one process gives: tokens shared, weights sharded, and both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.ranks import on_ranks
from tests.training.transformer_helpers import apart, gradient_apart
from tests.training.transformer_ranks import CASES, built, gradients, inputs, loss, work


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return on_ranks(2, work)


def alone(case: str, *seeds: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss and its gradients in one process."""
    transformer = built(case)
    value = torch.stack([loss(transformer, inputs(case, seed)) for seed in seeds or (0,)]).mean()
    value.backward()
    return value.detach(), gradients(transformer)


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert apart(found[0], expected[0]) < 1e-10
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float(gradient.abs().max()) > 0, name
        assert gradient_apart(found[1][name], gradient) < 1e-10, name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shared_tokens_have_loss_and_gradients_of_one_process(case: str, ranks: list[dict[str, Any]]) -> None:
    expected = alone(case)
    for rank in ranks:
        assert_same(rank[case], expected)


def test_sharded_weights_learn_from_two_packs_what_one_process_learns(ranks: list[dict[str, Any]]) -> None:
    loss_of_both, expected = alone("5b pack", 0, 50)
    mean = (ranks[0]["fsdp2"][0] + ranks[1]["fsdp2"][0]) / 2
    for rank in ranks:
        assert_same((mean, rank["fsdp2"][1]), (loss_of_both, expected))


def test_sharded_weights_and_shared_tokens_go_together(ranks: list[dict[str, Any]]) -> None:
    expected = alone("5b pack")
    for rank in ranks:
        assert_same(rank["fsdp2 and context"], expected)


def test_heads_that_cannot_be_shared_are_refused(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["refused"] == "1 heads cannot be shared by 2 ranks; use a number that divides 1"
