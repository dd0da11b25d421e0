"""Triton's operators where PyTorch looks at them without running them: in graphs and on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.float64 import outputs_and_gradients, relative_error

BATCH, SEQ, SIZE = 2, 3, 12


def inputs(device: str) -> list[Tensor]:
    """x, a branch, the weight and the bias of a norm, a projection to heads and to an MLP."""
    torch.manual_seed(1)
    shapes = [(BATCH, SEQ, SIZE), (BATCH, SEQ, SIZE), (SIZE,), (SIZE,), (3 * SIZE, SIZE), (3 * SIZE, SIZE)]
    return [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]


def layer(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, heads: Tensor, mlp: Tensor) -> Tensor:
    """Every operator once."""
    from llmkit.kernels.triton import activation, dropout, norm, rotation

    total, normed = norm.add_layer_norm(x, branch, weight, bias, 1e-5)
    q, k, v = (each.unflatten(-1, (-1, 4)) for each in (normed @ heads.T).chunk(3, -1))
    angle = torch.arange(SEQ * 2, device=x.device).view(SEQ, 2) * 0.1
    q, k = rotation.rotate(q, k, angle.cos(), angle.sin())
    key = torch.full((), 77, dtype=torch.int64, device=x.device)
    x = dropout.dropout_add((q * k + v).flatten(-2), total, 0.3, key)
    gate, up, rest = (norm.rms_norm(x, weight, 1e-6) @ mlp.T).chunk(3, -1)
    return activation.swiglu(gate, up) + activation.gelu(rest, bias)


def test_a_graph_of_them_all_computes_the_same(device):
    """Without a break; in a graph the rotation is out of place."""
    weights = [torch.randn(BATCH, SEQ, SIZE, device=device)]
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
    outputs, gradients = outputs_and_gradients(compiled, inputs(device), weights)
    wanted, wanted_gradients = outputs_and_gradients(layer, inputs(device), weights)
    for number, (one, other) in enumerate(zip(outputs + gradients, wanted + wanted_gradients)):
        assert relative_error(one, other) < 1e-6, f"tensor {number}"


def test_meta_tensors_pass_through(device):
    found = layer(*(each.detach().to("meta").requires_grad_() for each in inputs(device)))
    assert found.shape == (BATCH, SEQ, SIZE) and found.is_meta, str(found.shape)
    found.sum().backward()


@pytest.mark.parametrize(
    "name", ["norm", "layer norm", "rotate", "swiglu", "geglu", "gelu", "relu2", "dropout_add"]
)
def test_registrations_keep_what_they_promise(device, name):
    """Nothing is changed that is not said to be, shapes are known in advance, gradients are registered."""
    from llmkit.kernels.triton import activation, dropout, norm, rotation  # noqa: F401  they register

    x, branch, weight, bias, *_ = inputs(device)
    q, angle = (
        torch.randn(BATCH, SEQ, 2, 4, device=device, requires_grad=True),
        torch.randn(SEQ, 2, device=device),
    )
    key = torch.tensor(77, device=device)
    operator, arguments = {
        "norm": ("norm", (x, None, weight, None, False, 1e-5)),
        "layer norm": ("norm", (x, branch, weight, bias, True, 1e-5)),
        "rotate": ("rotate", (q, q.detach()[:, :, :1].clone(), angle.cos(), angle.sin(), False)),
        "swiglu": ("gated", (x, branch, False)),
        "geglu": ("gated", (x, branch, True)),
        "gelu": ("ungated", (x, bias, False)),
        "relu2": ("ungated", (x, bias, True)),
        "dropout_add": ("dropout_add", (branch, x, 0.5, key)),
    }[name]
    torch.library.opcheck(getattr(torch.ops.llmkit, operator).default, arguments)
