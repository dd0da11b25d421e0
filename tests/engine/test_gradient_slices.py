"""Slices of gradients: what is sent when, what is in memory meanwhile, and that all of it is the sum."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmkit.config.optimizer_section import Optimizer
from llmkit.engine import reduce
from llmkit.engine.gradient_slices import GradientSlices
from llmkit.engine.masters import PartitionedMasters
from llmkit.engine.native import NativeEngine
from llmkit.engine.parts import StepParts
from llmkit.engine.reduce import REDUCE_SCATTER, GradientBuckets
from llmkit.errors import UserError
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.subjects import MODELS
from llmkit.plan.buckets import most_alive
from llmkit.precision import PRECISIONS
from tests.ranks import run_ranks

WIDTH, MICRO_BATCHES, STEPS = 5, 3, 2
RARE = 2
"""The layer that rank 1 uses in its second micro-batch alone, and rank 0 never."""
PARTS = {"one bucket": 2**20, "many buckets": 4 * 8}


def layers(dtype: torch.dtype) -> list[nn.Linear]:
    """Made alike on all ranks; biases share no bucket with matrices."""
    torch.manual_seed(0)
    return [nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(5)]


def used(rank: int, micro_batch: int, step: int, all_layers: bool = False) -> list[int]:
    """The layers that a rank's micro-batch goes through, one of them twice."""
    return [0, 1, *[RARE] * (all_layers or rank == micro_batch == 1), 3, 3, *[4] * all_layers]


def inputs(rank: int, micro_batch: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + 10 * micro_batch + rank)
    return torch.randn(4, WIDTH, generator=generator)


def backward(modules: list[nn.Linear], *which: int, all_layers: bool = False) -> None:
    x = inputs(*which).to(modules[0].weight.dtype)
    for index in used(*which, all_layers=all_layers):
        x = modules[index](x)
    x.float().square().sum().backward()


class Waiting:
    """Work that is waited for during one second of a clock."""

    def __init__(self, work: dist.Work, clock: list[float]) -> None:
        self.work, self.clock = work, clock

    def wait(self) -> None:
        self.work.wait()
        self.clock[0] += 1.0


def sums(bf16: bool, bucket_bytes: int, mistake: str = "", all_layers: bool = False) -> dict[str, Any]:
    """The gradient of the last of some steps, put together of the slices of two ranks."""
    modules = layers(torch.bfloat16 if bf16 else torch.float32)
    weights = [weight for module in modules for weight in module.parameters()]
    axis, log = make_mesh(1)["data"], list[tuple[str, int]]()
    slices = GradientSlices([(weight, weight.dim() - 1) for weight in weights], axis, bucket_bytes)
    scatter, own = getattr(dist, REDUCE_SCATTER), list[float]()
    clock = [0.0]
    parts = StepParts(torch.device("cpu"), lambda: clock[0])
    slices.waiting = lambda: parts.part("communication")

    def counting(mine: Tensor, whole: Tensor, **options: Any) -> Any:
        log.append(("sent", whole.numel()))
        return Waiting(scatter(mine, whole, **options), clock)

    empty, most = Tensor.new_empty, 0

    def poisoned(tensor: Tensor, *size: int) -> Tensor:
        nonlocal most
        # The new one is counted, and is not in `buffers` yet.
        most = max(most, size[0] + sum(each.numel() for each in slices.buffers.values()))
        return empty(tensor, *size).fill_(torch.nan)  # what nobody writes must not be sent

    slices.before_sending = lambda gradient: own.append(float(gradient.double().square().sum()))
    with (
        patch.object(dist, REDUCE_SCATTER, counting),
        patch.object(Tensor, "new_empty", poisoned),
        MISTAKES[mistake](),
    ):
        for step in range(STEPS):
            slices.zero()
            own.clear()
            for index in range(MICRO_BATCHES):
                slices.before_backward(index == MICRO_BATCHES - 1)
                log.append(("forward", 0))
                backward(modules, axis.rank, index, step, all_layers=all_layers)
            with parts.part("communication"):  # as in the engine
                slices.finish()
    assert slices.buffers == {} and all(weight.grad is None for weight in weights)
    whole = [torch.zeros(bucket.size) for bucket in slices.buckets]
    for bucket, flat in zip(slices.buckets, whole, strict=True):
        flat[slices.own(bucket)] = slices.own_gradient(bucket)
    slices.all_gather(whole)
    views = [bucket.views(flat) for bucket, flat in zip(slices.buckets, whole, strict=True)]
    found = {weight: view for each in views for weight, view in each}
    index = {weight: number for number, weight in enumerate(weights)}
    order = [([index[w] for w in bucket.weights], bucket.size) for bucket in slices.buckets]
    return {
        "gradients": [found[weight].tolist() for weight in weights],
        "log": log,
        "own": sum(own),
        "waited": parts.read()["communication"],
        "most": most,
        "planned": most_alive([order]),
        "sizes": [bucket.size for bucket in slices.buckets],
    }


def replaced() -> AbstractContextManager[Any]:
    """A rank keeps the slice of the last micro-batch alone."""
    real = GradientSlices._take_back

    def take_back(self: GradientSlices, left: int) -> None:
        for bucket, _ in list(self._on_their_way)[: len(self._on_their_way) - left]:
            self.slices[bucket].zero_()
        real(self, left)

    return patch.object(GradientSlices, "_take_back", take_back)


def not_cleared() -> AbstractContextManager[Any]:
    """What a weight without a gradient has in its bucket is what the memory had."""
    real = reduce.Bucket.view

    def send_rest(self: GradientSlices) -> None:
        with patch.object(reduce.Bucket, "view", lambda *args: real(*args).clone()):
            original(self)

    original = GradientSlices._send_rest
    return patch.object(GradientSlices, "_send_rest", send_rest)


MISTAKES: dict[str, Any] = {"": nullcontext, "replaced": replaced, "not cleared": not_cleared}


def expected(step: int = STEPS - 1) -> list[Tensor]:
    """All ranks' micro-batches in one process, by autograd alone."""
    modules = layers(torch.float32)
    for rank in range(2):
        for micro_batch in range(MICRO_BATCHES):
            backward(modules, rank, micro_batch, step)
    weights = [weight for module in modules for weight in module.parameters()]
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]


def again(sliced: bool) -> str:
    """The error of a layer that is in two segments with backward passes of their own."""
    layer = layers(torch.bfloat16)[0]
    weights = [(layer.weight, 0), (layer.bias, 1)]
    axis = make_mesh(1)["data"]
    made = GradientSlices(weights, axis, 4) if sliced else GradientBuckets(weights, axis, 4, partitioned=True)
    for last in (False, True):
        made.before_backward(last)
        x = torch.ones(2, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2):
            x = checkpoint(layer, x, use_reentrant=True)
        try:
            x.float().sum().backward()
        except UserError as error:
            for work in made._on_their_way:
                (work[1] if isinstance(work, tuple) else work).wait()
            return f"{last}: {error}"
    made.finish()
    return ""


def cases() -> dict[str, Any]:
    """What came of each case, in one launch."""
    found = {f"{bf16} {name}": sums(bf16, size) for bf16 in (False, True) for name, size in PARTS.items()}
    found |= {mistake: sums(False, 4 * 8, mistake) for mistake in MISTAKES if mistake}
    found |= {"again": [again(sliced) for sliced in (True, False)]}
    return found | {"all used": sums(False, 4 * 8, all_layers=True)}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(2, f"{__name__}:cases")


def errors(found: dict[str, Any]) -> list[float]:
    pairs = zip(found["gradients"], expected(), strict=True)
    return [float((torch.tensor(mine) - wanted).norm() / (wanted.norm() + 1e-9)) for mine, wanted in pairs]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("bf16", [False, True])
def test_slices_of_two_ranks_are_the_sum_over_ranks_and_micro_batches(ranks, bf16, parts):
    for found in (each[f"{bf16} {parts}"] for each in ranks):
        assert max(errors(found)) < (3e-2 if bf16 else 1e-6)
        assert not torch.tensor(found["gradients"][-1]).any(), "nobody uses the last layer"
        assert torch.tensor(found["gradients"][2 * RARE]).any(), "rank 1 alone uses it, once"


@pytest.mark.parametrize("parts", PARTS)
def test_each_micro_batch_is_sent_whole_and_before_the_next_ones_gradients_come(ranks, parts):
    for found in (each[f"True {parts}"] for each in ranks):
        forward = [at for at, (kind, _) in enumerate(found["log"]) if kind == "forward"]
        assert len(forward) == STEPS * MICRO_BATCHES
        for first, last in pairwise([*forward, len(found["log"])]):
            assert [size for _, size in found["log"][first + 1 : last]] == found["sizes"]


def test_as_many_buckets_are_in_memory_as_planned_unless_a_weight_takes_no_part(ranks):
    for each in ranks:
        found = each["all used"]
        assert found["most"] == found["planned"] < sum(found["sizes"])
        assert each["False one bucket"]["most"] == sum(each["False one bucket"]["sizes"])
        # The last layer, which nobody uses, is in the first bucket: those behind it wait.
        assert found["planned"] < each["False many buckets"]["most"] <= sum(found["sizes"])


def test_what_a_rank_has_computed_alone_is_seen_before_it_is_sent(ranks):
    for rank, found in enumerate(each["False many buckets"] for each in ranks):
        squares = 0.0
        for micro_batch in range(MICRO_BATCHES):
            modules = layers(torch.float32)
            backward(modules, rank, micro_batch, STEPS - 1)
            weights = [weight for module in modules for weight in module.parameters()]
            squares += sum(float(w.grad.double().square().sum()) for w in weights if w.grad is not None)
        assert found["own"] == pytest.approx(squares, rel=1e-5)


def test_all_waiting_for_other_ranks_is_told_once(ranks):
    for found in (each[f"True {name}"] for each in ranks for name in PARTS):
        assert found["waited"] == STEPS * MICRO_BATCHES * len(found["sizes"])


def test_waiting_in_the_backward_pass_is_communication_of_the_step():
    engine = NativeEngine(
        GPT(MODELS["gpt2"]), Optimizer(), precision=PRECISIONS["fp32"], gradient_clipping=1.0,
        mesh=Mesh(0, 2), zero_stage=2,
    )  # fmt: skip
    assert isinstance(engine.masters, PartitionedMasters)
    assert isinstance(engine.masters.buckets, GradientSlices)
    engine.step_parts = StepParts(torch.device("cpu"))
    with engine.masters.buckets.waiting():
        pass
    assert set(engine.step_parts.read()) == {"communication"}


def test_a_gradient_that_comes_twice_is_an_error_where_a_part_of_it_would_be_lost(ranks):
    for sliced, whole in (each["again"] for each in ranks):
        assert sliced.startswith("False: "), "each micro-batch is sent"
        assert whole.startswith("True: "), "the last one alone is sent"
        for message in (sliced, whole):
            assert "of shape (5,)" in message or "of shape (5, 5)" in message
            assert message.endswith("set use_reentrant=False")


@pytest.mark.parametrize("mistake", ["replaced", "not cleared"])
def test_a_mistake_is_found(ranks, mistake):
    for found in (each[mistake] for each in ranks):
        worst = max(errors(found), key=lambda error: (error != error, error))
        assert not worst < 1e-2
