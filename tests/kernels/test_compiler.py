"""A module on which torch.compile fails is told of, and runs all the same."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.exc import CppCompileError

from llmkit.kernels.compiler import compile_module, graph_breaks, graphs_compiled, reason_of


def failing_backend(graph, inputs):
    raise RuntimeError("no such instruction\nand a long listing")


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1.0


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def test_a_failure_is_reported_once_and_the_module_runs_without_compilation():
    told: list[str] = []
    layer = Own(3, 2)
    x = torch.randn(4, 3)
    expected = layer(x)
    compile_module(layer, told.append, failing_backend)
    for _ in range(2):
        assert layer(x).equal(expected)
    (message,) = told
    assert "Own" in message and "no such instruction" in message and "listing" not in message


def test_a_backward_pass_that_cannot_be_compiled_is_found_before_anything_is_computed():
    told: list[str] = []
    layer = Own(3, 2)
    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=failing_backend)
    compile_module(layer, told.append, backend)
    layer(torch.randn(4, 3)).sum().backward()
    assert layer.weight.grad is not None
    (message,) = told
    assert "no such instruction" in message


def test_an_error_of_the_module_itself_is_no_failure_of_the_compiler():
    told: list[str] = []
    layer = Own(3, 2)
    compile_module(layer, told.append, "eager")
    with pytest.raises(RuntimeError):
        layer(torch.randn(4, 5))


class Breaks(nn.Module):
    def forward(self, x):
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2


def test_the_reason_of_a_failure_has_the_compilers_first_complaint():
    failed = CppCompileError(["g++", "x.cpp"], "x.cpp: In function f:\nx.cpp:3:1: error: no f\n3 | f()\n")
    assert reason_of(failed) == "C++ compile error: x.cpp:3:1: error: no f"
    full = CppCompileError(["g++"], "ld: final link failed: No space left on device\ncollect2: error: ld\n")
    assert reason_of(full).endswith(": ld: final link failed: No space left on device")
    assert reason_of(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"


def test_graph_breaks_are_counted_by_their_reason():
    module = Breaks()
    compile_module(module, print, "eager")
    assert module(torch.zeros(2)).tolist() == [2.0, 2.0]
    assert sum(graph_breaks().values()) == 1


def test_a_graph_without_breaks_has_none_to_tell():
    layer = Own(3, 2)
    compile_module(layer, print, "eager")
    layer(torch.randn(4, 3))
    assert graph_breaks() == {}


def test_graphs_are_counted_as_they_are_made():
    layer, before = Own(3, 2), graphs_compiled()
    compile_module(layer, print, "eager")
    for rows, made in ((4, 1), (4, 1), (5, 2)):
        layer(torch.randn(rows, 3))
        assert graphs_compiled() == before + made
