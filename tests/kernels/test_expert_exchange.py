"""Experts that ranks deal out among them, against one process that holds all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.config.model_section import Moe
from llmkit.kernels.operators import TORCH
from llmkit.model.gpt import NO_TENSOR_PARALLELISM
from llmkit.model.moe import Experts, MixtureOfExperts, Routing
from llmkit.parallel import collectives
from llmkit.parallel.mesh import ALL_EXPERTS, ExpertParallel
from llmkit.parity.compare import relative_error
from llmkit.parity.subjects import MODERN
from tests.ranks import run_ranks

RANKS, EXPERTS, WIDTH = 3, 6, 48


class Case(NamedTuple):
    """tokens: of each rank. chosen: experts that may be chosen, each token's own. k: of a token. inner: width
    of an expert. tolerance: of relative errors."""

    name: str
    tokens: tuple[int, ...]
    chosen: tuple[int, ...] = tuple(range(EXPERTS))
    k: int = 2
    inner: int = 20
    dtype: str = "float32"
    tolerance: float = 2e-6


CASES = [
    Case("any expert", (7, 7, 7)),
    Case("one expert a token", (7, 7, 7), k=1),
    Case("uneven batches", (11, 1, 5)),
    Case("a rank that has no token", (4, 0, 3)),
    Case("a rank whose experts nobody chooses", (7, 6, 5), chosen=(0, 1, 4, 5)),
    Case("all tokens for one rank", (7, 6, 5), chosen=(2, 3)),
    Case("no token at all", (0, 0, 0)),
    Case("bf16 by grouped products", (9, 4, 6), chosen=(0, 1, 4), inner=16, dtype="bfloat16", tolerance=1e-2),
]


def given(case: Case, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a rank: tokens, the weights of the chosen experts, their numbers, the gradient of the outputs."""
    draw = torch.Generator().manual_seed(rank)
    count = case.tokens[rank]
    x, gradient = torch.randn(2, 1, count, WIDTH, generator=draw).to(getattr(torch, case.dtype))
    scores = torch.rand(1, count, len(case.chosen), generator=draw)
    weights, places = scores.topk(case.k)
    return x.requires_grad_(), weights.requires_grad_(), torch.tensor(case.chosen)[places], gradient


def experts_of(case: Case, ranks: ExpertParallel) -> Experts:
    moe = Moe(num_experts=EXPERTS, num_experts_per_tok=case.k, moe_intermediate_size=case.inner)
    return Experts(replace(MODERN, moe=moe), NO_TENSOR_PARALLELISM, TORCH, ranks)


def outcome(case: Case, experts: Experts, rank: int) -> list[Tensor]:
    """Outputs of a rank's tokens, and the gradients of these and of their weights."""
    x, weights, numbers, gradient = given(case, rank)
    found = experts(x, Routing(weights, numbers, torch.empty(0)))
    found.backward(gradient)
    assert x.grad is not None and weights.grad is not None
    return [found.detach(), x.grad, weights.grad]


def compare() -> dict[str, Any]:
    """Case -> the largest relative error on this rank of outputs, of gradients of tokens and of experts."""
    ranks, found = ExpertParallel(dist.get_rank(), RANKS, dist.group.WORLD), {}
    for case in CASES:
        whole, mine = experts_of(case, ALL_EXPERTS), experts_of(case, ranks)
        kind, share = getattr(torch, case.dtype), EXPERTS // RANKS
        draw = torch.Generator().manual_seed(99)
        for name, weight in whole.named_parameters():
            weight.data = torch.randn(weight.shape, generator=draw).to(kind) * 0.2
            rows = weight.unflatten(0, (EXPERTS, -1))[ranks.rank * share : (ranks.rank + 1) * share]
            mine.get_parameter(name).data = rows.flatten(0, 1).clone()
        wanted = [outcome(case, whole, rank) for rank in range(RANKS)][ranks.rank]
        pairs = list(zip(outcome(case, mine, ranks.rank), wanted, strict=True))
        for name, weight in whole.named_parameters():
            rows = weight.grad.unflatten(0, (EXPERTS, -1))[ranks.rank * share : (ranks.rank + 1) * share]
            pairs.append((mine.get_parameter(name).grad, rows.flatten(0, 1)))
        found[case.name] = max(_error(*pair) for pair in pairs)
    return found | beside_a_shared_expert(ranks)


def beside_a_shared_expert(ranks: ExpertParallel) -> dict[str, Any]:
    """What a mixture with a shared expert does one after the other, forward and backward; whether outputs and
    gradients have the bits of both parts computed one by one."""
    moe = Moe(num_experts=EXPERTS, moe_intermediate_size=20, shared_expert_intermediate_size=12)
    mixture = MixtureOfExperts(replace(MODERN, moe=moe), NO_TENSOR_PARALLELISM, TORCH, ranks=ranks)
    assert mixture.shared_expert is not None
    draw, events = torch.Generator().manual_seed(ranks.rank), list[str]()
    for weight in mixture.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * 0.2
    x, gradient = torch.randn(2, 2, 5, WIDTH, generator=draw)

    def outcome(compute: Any) -> list[Tensor]:
        mixture.zero_grad()
        given = x.clone().requires_grad_()
        outputs = compute(given)
        outputs.backward(gradient)
        return [outputs, given.grad, *(weight.grad for weight in mixture.parameters())]

    def computed(module: Any, inputs: Any, output: Tensor) -> None:
        events.append("shared")
        output.register_hook(lambda _: events.append("shared"))

    def told(name: str) -> Any:
        real = getattr(collectives, name)
        return patch.object(collectives, name, lambda *given: (events.append(name), real(*given))[1])

    one_by_one = outcome(lambda x: mixture.experts(x, mixture.router(x)) + mixture.shared_expert(x))
    hook = mixture.shared_expert.register_forward_hook(computed)
    with told("start_all_to_all"), told("wait"):
        together = outcome(lambda x: mixture(x)[0])
    hook.remove()
    same = all(mine.equal(wanted) for mine, wanted in zip(together, one_by_one, strict=True))
    return {"events": events, "bits": same}


def _error(mine: Tensor, wanted: Tensor) -> float:
    assert mine is not None and mine.shape == wanted.shape and mine.dtype == wanted.dtype
    return relative_error(mine.double(), wanted.double()) if wanted.any() else float(mine.abs().sum())


@pytest.fixture(scope="module")
def found() -> list[dict[str, float]]:
    return run_ranks(RANKS, "tests.kernels.test_expert_exchange:compare")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_dealt_out_experts_give_what_one_process_gives(found, case):
    for rank, errors in enumerate(found):
        assert errors[case.name] <= case.tolerance, rank


def test_a_shared_expert_computes_while_tokens_and_gradients_are_under_way(found):
    there, back = ["start_all_to_all", "shared", "wait"], ["start_all_to_all", "wait"]
    for rank, figures in enumerate(found):
        assert figures["events"] == there + back + back + there, rank
        assert figures["bits"], rank
