"""Communication beside products in a column-parallel layer; gradients over ranks: test_tensor_parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule
from torch.profiler import ProfilerActivity, profile

from llmkit.parallel.column_linear import _gradients, column_linear

COMMUNICATION = {True: "reduce_scatter_tensor", False: "all_reduce_"}


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process, whose collectives are real."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((6, 3, 5), (7, 5), (7,))
    return tuple(torch.randn(size, generator=generator).requires_grad_() for size in sizes)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_inputs_gradient_is_summed_while_the_weights_is_computed(alone, pieces):
    out = column_linear(*tensors(), alone, pieces=pieces)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        out.sum().backward()
    called = sorted(seen.events(), key=lambda event: event.time_range.start)
    names = [event.name.rpartition("::")[2] for event in called]
    relevant = ("mm", "wait_tensor", *COMMUNICATION.values())
    found = [name for name in names if name in relevant]
    assert found == ["mm", COMMUNICATION[pieces], "mm", "wait_tensor"]


@pytest.mark.parametrize("pieces", [False, True])
def test_both_gradients_are_one_operator_to_the_compiler(alone, pieces):
    found: list[str] = []

    def keep(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph),
        bw_compiler=keep,
        partition_fn=min_cut_rematerialization_partition,
    )
    torch._dynamo.reset()

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return column_linear(x, weight, bias, alone, pieces=pieces).square()

    torch.compile(layer, backend=backend, fullgraph=True)(*tensors()).sum().backward()
    assert sum(name.startswith("llmkit.column_linear_gradients") for name in found) == 1
    assert not any("mm" in name or "c10d" in name for name in found)


@pytest.mark.parametrize("pieces", [0, 2])
def test_the_operator_says_what_it_gives(alone, pieces):
    x, weight, _ = tensors()
    gradient = torch.randn(6, 3, 7)
    found = _gradients(gradient.to("meta"), x.detach().to("meta"), weight.detach().to("meta"), pieces, "")
    assert [each.shape for each in found] == [(3 if pieces else 6, 3, 5), (7, 5)]
    arguments = (gradient, x.detach(), weight.detach(), pieces and 1, alone.group_name)
    torch.library.opcheck(_gradients, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, True)])
def test_gradients_are_those_of_a_linear_layer_where_they_are_asked_for(alone, pieces, needed):
    ours, theirs = tensors(), tensors()
    for tensor, asked in zip((*ours, *theirs), (*needed, *needed), strict=True):
        tensor.requires_grad_(asked)
    found, wanted = column_linear(*ours, alone, pieces=pieces), F.linear(*theirs)
    torch.testing.assert_close(found, wanted)
    cotangent = torch.randn(wanted.shape)
    found.backward(cotangent)
    wanted.backward(cotangent)
    for mine, its in zip(ours, theirs, strict=True):
        if its.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, its.grad)
