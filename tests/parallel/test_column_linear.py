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
from torch.utils._python_dispatch import TorchDispatchMode

from llmkit.parallel.column_linear import column_linear

COMMUNICATION = {True: "reduce_scatter_tensor", False: "all_reduce"}
RELEVANT = ("mm", "sum", "wait_tensor", *COMMUNICATION.values())


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process, whose collectives are real."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


class Order(TorchDispatchMode):
    """The operations that are called, of those that matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if name in RELEVANT:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((6, 3, 5), (7, 5), (7,))
    return tuple(torch.randn(size, generator=generator).requires_grad_() for size in sizes)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_inputs_gradient_is_summed_while_the_weights_is_computed(alone, pieces):
    out = column_linear(*tensors(), alone, pieces=pieces)
    with Order() as order:
        out.sum().backward()
    assert order.names[-5:] == ["mm", COMMUNICATION[pieces], "mm", "sum", "wait_tensor"]


@pytest.mark.parametrize("pieces", [False, True])
def test_compilation_keeps_this_order(alone, pieces):
    found: list[list[str]] = []

    def keep(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        names = (str(node.target).split(".")[-2] for node in graph.graph.nodes if node.op == "call_function")
        found.append([name for name in names if name in RELEVANT])
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
    assert found == [["mm", COMMUNICATION[pieces], "mm", "sum", "wait_tensor"]]


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
