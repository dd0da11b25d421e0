"""Triton kernels compile for an H100: no registers in memory, 16 bytes read and written at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.plan.form_rules import WIDEST_NORM
from tests.kernels.gpu_code import compiled_for_h100

BF16 = torch.bfloat16


def launch_pointwise() -> None:
    """Every kernel once, at the widths of Llama 1B; the rows are few, for they decide nothing."""
    from llmkit.kernels.triton import activation, dropout, norm, rotation

    rows, size = 64, 2048
    x, weight = torch.zeros(1, rows, size, dtype=BF16), torch.zeros(size, dtype=BF16)
    for total in (x.clone().requires_grad_(), None):
        branch = x.clone().requires_grad_()
        for bias in (weight, None):
            y = norm._norm(branch, total, weight, bias, bias is not None, 1e-5)[1]
            torch.autograd.grad(y, branch, torch.ones_like(y))
    qkv = torch.zeros(1, rows, size + 1024, dtype=BF16)
    q, k, _ = (each.unflatten(-1, (-1, 64)) for each in qkv.split([size, 512, 512], -1))
    angles = torch.zeros(2, rows, 32).unbind()
    rotation.rotate(q, k, *angles)
    rotation._rotated(q.contiguous(), k.contiguous(), *angles, True)
    q = q.detach().requires_grad_()
    y = norm.rms_norm(q, weight[:64], 1e-5)
    torch.autograd.grad(y, q, torch.ones_like(y))
    gate, up = (each.requires_grad_() for each in torch.zeros(1, rows, 16384, dtype=BF16).chunk(2, -1))
    y = activation.swiglu(gate, up)
    torch.autograd.grad(y, gate, torch.ones_like(y))
    for bias in (torch.zeros(8192, dtype=BF16), None):
        y = activation.gelu(up, bias)
        torch.autograd.grad(y, up, torch.ones_like(y))
    branch = x.clone().requires_grad_()
    y = dropout.dropout_add(branch, x, 0.1)
    torch.autograd.grad(y, branch, torch.ones_like(y))


def launch_adamw() -> None:
    from llmkit.kernels.triton.adamw import AdamW

    masters = [torch.nn.Parameter(torch.zeros(size)) for size in (5000, 7)]
    optimizer = AdamW([{"params": masters, "weight_decay": 0.1}], 1e-3, (0.9, 0.95), 1e-8)
    optimizer.rounded = {each: torch.zeros(each.shape, dtype=BF16) for each in masters}
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    for each in masters:
        each.grad = torch.zeros_like(each)
    optimizer.step()


def launch_rows_of_logits() -> None:
    """GPT-2's vocabulary, padded; nothing, and all that there is, added to the loss."""
    from llmkit.kernels.head_loss import LossTerms
    from llmkit.kernels.head_loss_rows import RowSpec
    from llmkit.kernels.triton.cross_entropy import TritonRows

    x, column = torch.zeros(4, 50304, dtype=BF16), torch.zeros(4, dtype=torch.int64)
    weights = torch.ones(3, 4)
    for terms in (LossTerms(), LossTerms(30.0, 1e-4, 0.1)):
        spec = RowSpec(50257, 50257, terms)
        TritonRows().whole(x, column, weights, spec)
        TritonRows().gradient(x, column, weights, weights[0], spec)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    with compiled_for_h100(tmp_path) as codes:
        launch_pointwise()
        launch_adamw()
        launch_rows_of_logits()
    assert len(codes) == 25, "every launch above compiles one"
    for code in codes:
        assert code.spilled == 0 and code.registers <= 128, code
        assert code.load == code.store == 128, code


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernels_compile_for_other_types_and_odd_sizes(tmp_path: Path) -> None:
    """What the interpreter forgives and the compiler does not: types that do not meet, shapes of loops."""
    from llmkit.kernels.head_loss import LossTerms
    from llmkit.kernels.head_loss_rows import RowSpec
    from llmkit.kernels.triton import activation, dropout, norm
    from llmkit.kernels.triton.cross_entropy import TritonRows

    x = torch.zeros(7, 1031, dtype=torch.float32).requires_grad_()
    weight, columns = torch.zeros(1031), torch.zeros(7, dtype=torch.int64)
    widest = torch.zeros(2, WIDEST_NORM, dtype=BF16).requires_grad_()
    with compiled_for_h100(tmp_path) as codes:
        y = norm.add_layer_norm(widest, widest, widest[0].detach(), widest[0].detach(), 1e-5)[1]
        torch.autograd.grad(y, widest, torch.ones_like(y))
        for y in (
            norm.add_layer_norm(x, x, weight, weight, 1e-5)[1],
            activation.swiglu(x, x),
            activation.geglu(x, x),
            activation.gelu(x, weight),
            activation.relu2(x, weight),
            dropout.dropout_add(x, x, 0.1, torch.tensor(1)),
        ):
            torch.autograd.grad(y, x, torch.ones_like(y))
        spec, rows = RowSpec(1000, 1031, LossTerms(30.0, 1e-4, 0.1)), TritonRows()
        rows.statistics(x.detach(), columns, spec)
        rows.gradient(x.detach(), columns, torch.ones(3, 7), weight[:7], spec)
    assert len(codes) == 16
    assert codes[0].spilled == codes[1].spilled == 0, "the widest norm"
    assert all(code.spilled <= 64 for code in codes), codes
