"""Kernels that fail when they are first launched, forward or backward: nothing half-done is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo

from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.first_pass import FirstPass
from llmkit.engine.native import NativeEngine
from llmkit.errors import RunFault
from llmkit.kernels.head_loss_rows import ROW_PASSES, PlainRows
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.gpt import GPT
from llmkit.precision import PRECISIONS
from tests.engine.test_native import batch_of, split, targets
from tests.shapes import LLAMA_STYLE

SOURCE = """
def launch():
    raise RuntimeError("out of resource: shared memory\\nand a long listing")
"""
TRITON: dict[str, Any] = {}
exec(compile(SOURCE, "site-packages/triton/runtime/jit.py", "exec"), TRITON)


class FailsOnce(torch.autograd.Function):
    """The identity, whose kernels cannot be launched in one of the passes. counts: those tried."""

    @staticmethod
    def forward(ctx, x, where, counts):
        ctx.where, ctx.counts = where, counts
        counts.append("forward")
        if where == "forward":
            TRITON["launch"]()
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        ctx.counts.append("backward")
        if ctx.where == "backward":
            TRITON["launch"]()
        return dy, None, None


def failing(where: str, counts: list[str]) -> Operators:
    """A Triton form of SwiGLU that fails in a pass."""

    def swiglu(gate, up):
        return TORCH.swiglu(FailsOnce.apply(gate, where, counts), up)

    return replace(TORCH, swiglu=swiglu, forms={**TORCH.forms, "activation": "triton"})


def make(operators: Operators, told: list[str], precision: str = "fp32") -> NativeEngine:
    torch.manual_seed(0)
    shape = replace(LLAMA_STYLE, hidden_dropout=0.1)
    engine = NativeEngine(
        GPT(shape, operators), Optimizer(learning_rate=1e-2), precision=PRECISIONS[precision],
        gradient_clipping=0.5, operators=operators, note=told.append,
    )  # fmt: skip
    torch.manual_seed(1)  # of the dropouts
    return engine


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_process_alone_goes_on_in_plain_pytorch_as_if_nothing_had_been(where, precision):
    told: list[str] = []
    counts: list[str] = []
    engine, plain = make(failing(where, counts), told, precision), make(TORCH, [], precision)
    for step in range(3):
        batch = batch_of(LLAMA_STYLE, step)
        torch.manual_seed(step)
        found = engine.train_step(split(batch, 2), targets(batch))
        torch.manual_seed(step)
        expected = plain.train_step(split(batch, 2), targets(batch))
        assert found.loss_sum.equal(expected.loss_sum)
        assert found.grad_norm.equal(expected.grad_norm)
    for (name, a), b in zip(engine.model.named_parameters(), plain.model.parameters(), strict=True):
        assert a.equal(b), name
    (message,) = told
    assert "training goes on in plain PyTorch, not compiled: RuntimeError: out of resource" in message
    assert "listing" not in message
    assert counts.count(where) == 1, "a kernel that has failed is not launched again"


def test_an_evaluation_before_the_first_step_goes_on_too():
    told: list[str] = []
    engine, plain = make(failing("forward", []), told), make(TORCH, [])
    batch = batch_of(LLAMA_STYLE, 0)
    assert engine.evaluate(split(batch, 2)).nats.equal(plain.evaluate(split(batch, 2)).nats)
    assert len(told) == 1


def test_what_an_evaluation_has_launched_may_still_fail_in_the_backward_pass():
    told: list[str] = []
    engine = make(failing("backward", []), told)
    batch = batch_of(LLAMA_STYLE, 0)
    engine.evaluate([batch])
    assert told == []
    engine.train_step([batch], targets(batch))
    assert len(told) == 1


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_one_of_several_processes_ends_with_what_to_set(where):
    told: list[str] = []
    engine = make(failing(where, []), told)
    engine.first_pass.alone = False
    batch = batch_of(LLAMA_STYLE, 0)
    with pytest.raises(RunFault, match=r"out of resource: shared memory\. Set kernels.compile=false and"):
        engine.train_step([batch], targets(batch))
    assert told == []


def test_a_loss_of_which_parts_are_compiled_goes_on_uncompiled(monkeypatch):
    class Failing(PlainRows):
        def whole(self, *_):
            TRITON["launch"]()

    told: list[str] = []
    monkeypatch.setitem(ROW_PASSES, "compiled", Failing())
    engine, plain = (make(Operators.of({"head_loss": "chunked"}), told) for _ in range(2))
    engine.model.head.compiled = "parts"
    engine.first_pass.proven = False
    batch = batch_of(LLAMA_STYLE, 0)
    torch.manual_seed(3)
    found = engine.train_step([batch], targets(batch))
    torch.manual_seed(3)
    assert found.grad_norm.equal(plain.train_step([batch], targets(batch)).grad_norm)
    assert len(told) == 1


def test_an_update_that_fails_says_what_to_set():
    engine = make(TORCH, [])
    (optimizer,) = engine.optimizers
    batch = batch_of(LLAMA_STYLE, 0)
    optimizer.step = TRITON["launch"]
    with pytest.raises(RunFault, match=r"update of the weights: .*\. Set kernels.operators.adamw=torch$"):
        engine.train_step([batch], targets(batch))
    optimizer.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.train_step([batch], targets(batch))


@pytest.mark.parametrize("error", [ValueError("of the model"), torch.OutOfMemoryError("no room")])
def test_other_errors_stay_what_they_are(error):
    def passes() -> None:
        if isinstance(error, torch.OutOfMemoryError):  # even in a kernel
            source = compile("def fail(error): raise error", "site-packages/triton/driver.py", "exec")
            exec(source, names := dict[str, Any]())
            names["fail"](error)
        raise error

    model = make(failing("nowhere", []), []).model
    with pytest.raises(type(error), match=str(error)):
        FirstPass(model, model.operators, alone=True, note=pytest.fail).run(passes)


def test_a_compiled_model_runs_uncompiled_afterwards():
    told: list[str] = []
    engine = make(TORCH, told)
    torch._dynamo.reset()

    def backend(graph, inputs):
        def run(*arguments):
            TRITON["launch"]()

        return run

    engine.model.compile_parts(told.append, backend)
    engine.first_pass = FirstPass(engine.model, TORCH, alone=True, note=told.append)
    batch = batch_of(LLAMA_STYLE, 0)
    engine.train_step([batch], targets(batch))
    torch._dynamo.reset()
    assert len(told) == 1 and "not compiled" in told[0]
