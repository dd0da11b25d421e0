"""Rows of logits become their gradients: compiled as in plain PyTorch, and over the columns of each rank."""

from __future__ import annotations

import pytest
import torch

from llmkit.kernels import head_loss_chunks, head_loss_rows
from llmkit.kernels.head_loss_rows import ROW_PASSES, CompiledRows, RowSpec
from tests.kernels.head_loss_cases import TERMS, Case, check


def failing(graph, inputs):
    raise RuntimeError("no compiler")


@pytest.fixture
def compiled(monkeypatch):
    """`compiled` is traced and lowered, but runs in PyTorch."""
    torch._dynamo.reset()
    rows = CompiledRows(pytest.fail, "aot_eager")
    monkeypatch.setitem(ROW_PASSES, "compiled", rows)
    yield rows
    torch._dynamo.reset()


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_compiled_rows_compute_the_same(compiled, terms):
    check(head_loss_chunks.head_loss, Case.of(torch.float32), terms, "as engines do", 2e-6, compiled=True)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_columns_of_several_ranks_give_the_gradient_of_all(terms):
    """The exchange between them is a sum, a maximum and a sum of exponentials."""
    x, column = torch.randn(5, 30) * 3, torch.tensor([3, 29, -1, 12, 20])
    weights = torch.rand(3, 5)
    whole, spec = x.clone(), RowSpec(25, 25, terms)
    column = column.where(column < 25, 24)
    log_sum, target, total = head_loss_rows.whole(whole, column, weights, spec)
    parts, found = [x[:, :10].clone(), x[:, 10:20].clone(), x[:, 20:].clone(), x[:, :3].clone()], []
    for number, part in enumerate(parts):
        own = RowSpec(max(0, min(part.shape[1], 25 - 10 * number)), 25, terms)  # the last has only padding
        here = column - 10 * number
        here = here.where((here >= 0) & (here < own.valid), -1)
        found.append((head_loss_rows.statistics(part, here, own), part, here, own))
    largest = torch.stack([each[0][0] for each in found]).amax(0)
    sums = sum(each[0][1] * (each[0][0] - largest).exp() for each in found)
    torch.testing.assert_close(largest + sums.log(), log_sum)
    torch.testing.assert_close(sum(each[0][2] for each in found), target)
    torch.testing.assert_close(sum(each[0][3] for each in found), total)
    for _, part, here, own in found:
        head_loss_rows.gradient(part, here, weights, log_sum, own)
    torch.testing.assert_close(torch.cat(parts[:3], 1), whole)
    assert not parts[3].any()


def test_a_failure_of_the_compiler_is_told_once_and_plain_pytorch_runs():
    torch._dynamo.reset()
    told: list[str] = []
    rows = CompiledRows(told.append, failing)
    spec = RowSpec(6, 6, TERMS["plain"])
    for _ in range(2):
        x = torch.randn(2, 6)
        wanted = x.clone()
        expected = head_loss_rows.whole(wanted, torch.tensor([1, 2]), torch.ones(3, 2), spec)
        found = rows.whole(x, torch.tensor([1, 2]), torch.ones(3, 2), spec)
        assert torch.equal(found, expected) and torch.equal(x, wanted)
    (message,) = told
    assert "no compiler" in message


def test_failures_are_told_to_whom_asked_last(monkeypatch):
    monkeypatch.setitem(ROW_PASSES, "compiled", None)
    head_loss_rows.report_to(print)
    assert isinstance(ROW_PASSES["compiled"], CompiledRows)
