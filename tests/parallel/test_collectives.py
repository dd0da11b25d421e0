"""Collectives and their gradients against what they mean, written out on the pieces of all ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import deterministic

from llmkit.parallel import collectives
from llmkit.parallel.collectives import (
    all_gather,
    all_reduce_max,
    copy_to_group,
    reduce_from_group,
    reduce_scatter,
    replicated_weight,
)
from tests.ranks import run_ranks

SIZE = 3


def inputs(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    """What each rank has."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(SIZE)]


def check(operation: Any, x: list[Tensor], outputs: list[Tensor], gradients: Any) -> list[float]:
    """This rank's differences: of the output, and of the gradient for a random cotangent of it.

    gradients: from the ranks' cotangents to the gradients of the ranks' inputs.
    """
    rank = dist.get_rank()
    cotangents = inputs(tuple(outputs[0].shape), seed=9)
    mine = x[rank].clone().requires_grad_()
    found = operation(mine)
    found.backward(cotangents[rank].to(found.dtype))
    pairs = [(found, outputs[rank]), (mine.grad, gradients(cotangents)[rank])]
    return [float((a.float() - b.float()).abs().max()) for a, b in pairs]


def cases() -> dict[str, list[float]]:
    """On a rank: the differences of each operation."""
    group, found = dist.group.WORLD, {}

    def same(tensors: list[Tensor]) -> list[Tensor]:
        return tensors

    def total(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors).sum(0)] * SIZE

    def joined(tensors: list[Tensor], dim: int) -> list[Tensor]:
        return [torch.cat(tensors, dim)] * SIZE

    def pieces(tensors: list[Tensor], dim: int) -> list[Tensor]:
        return list(torch.stack(tensors).sum(0).chunk(SIZE, dim))

    x = inputs((2, 6, 9), seed=1)
    found["enter"] = check(lambda t: copy_to_group(t, group), x, same(x), total)
    found["leave"] = check(lambda t: reduce_from_group(t, group), x, total(x), same)
    found["shared"] = check(lambda t: replicated_weight(t, group), x, same(x), total)
    for dim in (0, 1, 2):
        y = inputs((3, 6, 9), seed=2)
        found[f"gather-{dim}"] = check(
            lambda t, d=dim: all_gather(t, d, group), y, joined(y, dim), lambda g, d=dim: pieces(g, d)
        )
        found[f"reduce_scatter-{dim}"] = check(
            lambda t, d=dim: reduce_scatter(t, d, group), y, pieces(y, dim), lambda g, d=dim: joined(g, d)
        )
    turned = [t.transpose(0, 2) for t in x]
    found["not contiguous"] = check(
        lambda t: all_gather(t, 1, group), turned, joined(turned, 1), lambda g: pieces(g, 1)
    )
    half = [t.bfloat16() for t in x]
    found["bf16"] = check(
        lambda t: all_gather(t, 1, group),
        half,
        joined(half, 1),
        lambda g: [p.bfloat16() for p in pieces(g, 1)],
    )
    largest = all_reduce_max(x[dist.get_rank()].requires_grad_(), group)
    assert not largest.requires_grad
    found["maximum"] = [float((largest - torch.stack(x).amax(0)).abs().max())]
    return found


@pytest.fixture(scope="module")
def outcome() -> list[dict[str, list[float]]]:
    return run_ranks(SIZE, "tests.parallel.test_collectives:cases")


@pytest.mark.parametrize("rank", range(SIZE))
def test_values_and_gradients(outcome, rank):
    for name, differences in outcome[rank].items():
        assert max(differences) <= (0.05 if name == "bf16" else 1e-6), name
    assert len(outcome[rank]) == 12


def test_what_links_the_halves_of_an_exchange_is_no_nan(monkeypatch):
    """Anomaly mode looks at all gradients; what is not written is NaN here."""
    monkeypatch.setattr(collectives, "start_all_to_all", lambda x, *_: x.clone())
    monkeypatch.setattr(collectives, "wait", lambda x: x)
    x = torch.randn(4, 3, requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    try:
        with torch.autograd.set_detect_anomaly(True):
            link, under_way = collectives.send_to_all(x, [4], [4], SimpleNamespace(group_name=""))
            assert link == 0.0
            collectives.arrived(link, under_way).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]
    torch.testing.assert_close(x.grad, 2.0 * x.detach())


def test_without_a_group_nothing_is_done():
    x = torch.randn(2, 3, requires_grad=True)
    for found in (
        copy_to_group(x, None),
        reduce_from_group(x, None),
        replicated_weight(x, None),
        all_gather(x, 1, None),
        reduce_scatter(x, 1, None),
    ):
        assert found is x
    assert all_reduce_max(x, None) is x
