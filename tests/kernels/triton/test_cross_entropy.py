"""Triton's pass over rows of logits, against float64 and against PyTorch's."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.head_loss_cases import TERMS, Case, check

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_head_with_the_loss(device, dtype, terms):
    from llmkit.kernels.triton import cross_entropy

    for objective in ("as engines do", "rows weighted"):
        check(cross_entropy.head_loss, Case.of(dtype, device), terms, objective, TOLERANCE[dtype])


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_rows_of_several_blocks_and_of_padding_alone(device, terms, monkeypatch):
    from llmkit.kernels import head_loss_rows
    from llmkit.kernels.triton import cross_entropy

    monkeypatch.setattr(cross_entropy, "BLOCK", 16)
    rows = cross_entropy.TritonRows()
    x = torch.randn(5, 70, device=device) * 3
    column = torch.tensor([3, 69, -1, 12, 64], device=device)
    for valid in (70, 65, 0):
        spec = head_loss_rows.RowSpec(valid, 70, terms)
        here = column.where(column < valid, -1)
        weights = torch.rand(3, 5, device=device)
        one, other = rows.statistics(x, here, spec), head_loss_rows.statistics(x, here, spec)
        torch.testing.assert_close(one, other, msg=f"statistics of {valid} columns")
        log_sum = torch.randn(5, device=device) + 5.0
        mine, its = x.clone(), x.clone()
        rows.gradient(mine, here, weights, log_sum, spec)
        head_loss_rows.gradient(its, here, weights, log_sum, spec)
        torch.testing.assert_close(mine, its, msg=f"gradient of {valid} columns")
        if valid:
            mine, its = x.clone(), x.clone()
            one = rows.whole(mine, here, weights, spec)
            other = head_loss_rows.whole(its, here, weights, spec)
            torch.testing.assert_close(one, other, msg=f"values of {valid} columns")
            torch.testing.assert_close(mine, its, msg=f"gradient of {valid} columns, in one")


def test_a_label_outside_the_vocabulary_is_an_infinite_loss(device):
    from llmkit.kernels.triton import cross_entropy

    case = Case.of(torch.float32, device)
    case.labels[0, 3] = 40  # among the padding
    assert cross_entropy.head_loss(*case).nats[0].isinf(), "a finite loss"
