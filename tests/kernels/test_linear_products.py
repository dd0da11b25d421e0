"""Products of a linear layer, and communication beside them; gradients over ranks: test_tensor_parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule
from torch.profiler import ProfilerActivity, profile

from llmkit.kernels.linear_products import PRODUCTS, _gradients, column_linear
from llmkit.kernels.operators import Operators
from llmkit.monitor.hardware import has_avx512_bf16

COMMUNICATION = {True: "reduce_scatter_tensor", False: "all_reduce_"}
OF_X = {"torch": "mm", "fp8": "_scaled_mm", "avx512": "mm"}
OF_WEIGHT = {**OF_X, "avx512": "weight_gradient"}


@pytest.fixture(params=OF_X)
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "avx512" and not has_avx512_bf16():
        pytest.skip("needs a CPU with AVX-512 BF16")
    Operators.of({"linear": request.param})  # a form that is not chosen is not imported
    return request.param


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((6, 3, 5), (7, 5), (7,))
    return tuple(torch.randn(size, generator=generator).requires_grad_() for size in sizes)


def bf16() -> tuple[Tensor, Tensor, Tensor]:
    """Sizes that the products of 8-bit numbers take."""
    generator = torch.Generator().manual_seed(4)
    sizes = ((6, 3, 32), (48, 32), (48,))
    return tuple(torch.randn(size, generator=generator).bfloat16().requires_grad_() for size in sizes)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_inputs_gradient_is_summed_while_the_weights_is_computed(alone, pieces, form):
    out = column_linear(*bf16(), alone, pieces=pieces, form=form)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        out.sum().backward()
    called = sorted(seen.events(), key=lambda event: event.time_range.start)
    names = [event.name.rpartition("::")[2] for event in called]
    relevant = (OF_X[form], OF_WEIGHT[form], "wait_tensor", *COMMUNICATION.values())
    found = [name for name in names if name in relevant]
    assert found == [OF_X[form], COMMUNICATION[pieces], OF_WEIGHT[form], "wait_tensor"]


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_each_form_gives_the_bits_of_its_own_layer(alone, pieces, form, with_bias):
    linear = Operators.of({"linear": form}).linear
    results = []
    for layer in (linear, lambda *given: column_linear(*given, alone, pieces=pieces, form=form)):
        x, weight, bias = bf16()
        inputs = (x, weight, bias) if with_bias else (x, weight)
        out = layer(*inputs) if with_bias else layer(*inputs, None)
        cotangent = torch.linspace(-1.0, 2.0, out.numel()).view_as(out).to(out.dtype)
        results.append([out, *torch.autograd.grad(out, inputs, cotangent)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_an_input_of_one_dimension_is_one_row(form):
    linear = Operators.of({"linear": form}).linear
    x, *others = bf16()
    rows = x.detach()[0, :1]
    results = []
    for each in (rows[0].clone().requires_grad_(), rows.clone().requires_grad_()):
        out = linear(each, *others)
        results.append([out, *torch.autograd.grad(out.sum(), (each, *others))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other.view_as(one), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pieces", [False, True])
def test_both_gradients_are_one_operator_to_the_compiler(alone, pieces, form):
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
        return column_linear(x, weight, bias, alone, pieces=pieces, form=form).square()

    torch.compile(layer, backend=backend, fullgraph=True)(*bf16()).sum().backward()
    assert sum(name.startswith("llmkit.column_linear_gradients") for name in found) == 1
    assert not any("mm" in name or "c10d" in name or "weight_gradient" in name for name in found)


@pytest.mark.parametrize("pieces", [0, 2])
def test_the_operator_says_what_it_gives(alone, pieces, form):
    x, weight, _ = (each.detach() for each in bf16())
    products, rows = PRODUCTS[form], torch.randn(18, 48).bfloat16()
    _, kept = products.output(x, weight, None)
    operands = products.operands(rows, kept, True, True)
    rest = (x.shape, weight.shape, rows.dtype, form)
    found = _gradients(*([each.to("meta") for each in some] for some in operands), *rest, pieces, "")
    assert [each.shape for each in found] == [(3 if pieces else 6, 3, 32), weight.shape]
    arguments = (*operands, *rest, pieces and 1, alone.group_name)
    checks = ("test_faketensor", *["test_schema"] * (form != "fp8"))  # which multiplies its inputs
    torch.library.opcheck(_gradients, arguments, test_utils=checks)


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
