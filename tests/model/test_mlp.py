"""The MLPs against their formulas in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from llmkit.model.mlp import make_mlp
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import randomise


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["swiglu", "geglu", "gelu", "relu2"])
def test_the_formula(kind, bias):
    mlp = randomise(make_mlp(kind, 5, 7, bias, TensorParallel()))
    x = torch.randn(2, 3, 5)
    weights = {name: each.detach().double() for name, each in mlp.named_parameters()}

    def linear(values, name, rows=slice(None)):
        out = values @ weights[f"{name}.weight"][rows].T
        return out + weights[f"{name}.bias"][rows] if bias else out

    wide = x.double()

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    if kind in ("swiglu", "geglu"):
        gate, up = linear(wide, "gate_up", slice(0, 7)), linear(wide, "gate_up", slice(7, 14))
        wide = (gelu(gate) if kind == "geglu" else gate / (1 + (-gate).exp())) * up
    elif kind == "gelu":
        wide = gelu(linear(wide, "up_proj"))
    else:
        wide = linear(wide, "up_proj").clamp(min=0) ** 2
    torch.testing.assert_close(mlp(x).double(), linear(wide, "down_proj"), rtol=1e-5, atol=1e-5)


def test_checkpoints_hold_each_projection_under_its_own_name():
    mlp = make_mlp("swiglu", 5, 7, True, TensorParallel())
    names = [each.name for each in mlp.gate_up.parameter_slices("blocks.3.mlp.gate_up")["weight"]]
    assert names == ["blocks.3.mlp.gate_proj.weight", "blocks.3.mlp.up_proj.weight"]
    (up,) = make_mlp("gelu", 5, 7, True, TensorParallel()).up_proj.parameter_slices("mlp.up_proj")["bias"]
    assert up.name == "mlp.up_proj.bias"
