"""The head and the loss by kernels for AVX-512 BF16: against float64, and its rows against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from llmkit.kernels import head_loss_chunks
from llmkit.kernels.head_loss import LossTerms
from llmkit.kernels.head_loss_rows import PlainRows, RowSpec
from llmkit.monitor.hardware import has_avx512_bf16
from tests.kernels.float64 import relative_error
from tests.kernels.head_loss_cases import OBJECTIVES, TERMS, Case, check

pytestmark = pytest.mark.skipif(not has_avx512_bf16(), reason="needs a CPU with AVX-512 BF16")


@pytest.fixture(params=["kept", "in chunks"])
def head_loss(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The form, by both ways; each of its matrix products has 16 rows, which do not divide a chunk."""
    from llmkit.kernels.cpu import head_loss

    monkeypatch.setattr(head_loss_chunks, "PRODUCT_ROWS", 16)
    if request.param == "in chunks":
        monkeypatch.setattr(head_loss_chunks, "BUFFER_BYTES", 0)
    return head_loss.head_loss


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_values_and_gradients(head_loss, terms: LossTerms, objective: str) -> None:
    for rows in (37, 48):  # without and with padding
        check(head_loss, Case.of(torch.bfloat16, rows=rows), terms, objective, 1.5e-2)


def test_other_types_are_pytorchs(head_loss) -> None:
    check(head_loss, Case.of(torch.float32), LossTerms(z_loss=0.1), next(iter(OBJECTIVES)), 1e-5)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("columns", [1, 15, 16, 33, 1000])
def test_rows_are_those_of_plain_pytorch(columns: int, terms: LossTerms) -> None:
    """Whole, and of one rank of several, of whose columns none, some or all are tokens."""
    from llmkit.kernels.cpu.head_loss import Avx512Rows

    torch.manual_seed(columns)
    plain, ours = PlainRows(), Avx512Rows()
    logits = (torch.randn(7, columns) * 8).bfloat16()
    column, weights = torch.randint(-1, columns, (7,)), torch.rand(3, 7)
    for valid in {0, (columns + 1) // 2, columns}:
        spec, column = RowSpec(valid, 1200, terms), column.clamp(max=valid - 1)
        wanted, found = logits.clone(), logits.clone()
        sums = plain.statistics(wanted, column, spec)
        statistics = ours.statistics(found, column, spec)
        torch.testing.assert_close(statistics, sums, rtol=1e-5, atol=1e-3)  # a sum of logits cancels
        log_sum = (sums[1].log() + sums[0]).clamp(min=-10.0) + 0.5  # other ranks have logits, too
        plain.gradient(wanted, column, weights, log_sum, spec)
        ours.gradient(found, column, weights, log_sum, spec)
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-6)
        if valid:
            wanted, found = logits.clone(), logits.clone()
            values = plain.whole(wanted, column, weights, spec)
            torch.testing.assert_close(ours.whole(found, column, weights, spec), values, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-6)


def test_the_sum_of_products_is_in_fp32() -> None:
    from llmkit.kernels.cpu.head_loss import Avx512Rows

    ours, total = Avx512Rows(), None
    parts = [(torch.randn(9, 40).bfloat16(), torch.randn(9, 24).bfloat16()) for _ in range(5)]
    for gradient, hidden in parts:
        total = ours.add_product(total, gradient, hidden)
    exact = sum(gradient.double().T @ hidden.double() for gradient, hidden in parts)
    assert relative_error(total, exact) < 1e-6
    assert relative_error(ours.product(*parts[0]), parts[0][0].double().T @ parts[0][1].double()) < 3e-3


def test_the_number_of_threads_changes_no_bit(head_loss) -> None:
    case, threads, found = Case.of(torch.bfloat16), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
            loss = head_loss(*leaves, *case[2:], terms=TERMS["all"])
            found.append((loss.nats, *torch.autograd.grad(loss.objective, leaves)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_reach_the_loss(head_loss, bad: float) -> None:
    case = Case.of(torch.bfloat16)
    case.hidden[0, 3, 5] = bad
    nats = head_loss(case.hidden.requires_grad_(), *case[1:]).nats
    assert nats.isfinite().tolist() == [False, True, True, True]


def test_a_label_beyond_the_vocabulary_is_an_error(head_loss) -> None:
    case = Case.of(torch.bfloat16)
    case.labels[0, 0] = 48
    with pytest.raises(IndexError, match="label is 48"):
        head_loss(*case)
