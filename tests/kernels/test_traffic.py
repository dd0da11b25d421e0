"""Bytes that pointwise operators read and write, counted on meta tensors: the table in docs/kernels.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmkit.kernels.operators import Operators

TABLE = (Path(__file__).parents[2] / "docs/kernels.md").read_text()
TOKENS, WIDTH, HEADS = 4096, 1024, 16


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that each operation takes and gives; views and allocations move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
        if not aliases and "empty" not in func.__name__ and func.__name__ != "detach.default":
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
            self.bytes += sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors)
        return out


def measure(call: Callable[..., Any], *inputs: Tensor) -> float:
    """Bytes of a forward and a backward pass for each element of the first input."""
    leaves = [each.detach().requires_grad_(each.is_floating_point()) for each in inputs]
    with Traffic() as traffic:
        outputs = call(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        gradients = [torch.empty_like(each) for each in outputs]
        torch.autograd.grad(outputs, [each for each in leaves if each.requires_grad], gradients)
    return traffic.bytes / leaves[0].numel()


def calls(operators: Operators) -> dict[str, float]:
    def bf16(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device="meta")

    x, weight = bf16(1, TOKENS, WIDTH), bf16(WIDTH)
    heads = bf16(1, TOKENS, HEADS, WIDTH // HEADS)
    angles = torch.empty(2, TOKENS, WIDTH // HEADS // 2, device="meta").unbind()
    key = torch.empty((), dtype=torch.int64, device="meta")
    return {
        "rms_norm": measure(lambda x, w: operators.rms_norm(x, w, 1e-5), x, weight),
        "add_rms_norm": measure(lambda x, y, w: operators.add_rms_norm(x, y, w, 1e-5), x, x, weight),
        "add_layer_norm": measure(
            lambda x, y, w, b: operators.add_layer_norm(x, y, w, b, 1e-5), x, x, weight, weight
        ),
        "rotate": measure(lambda q, k: operators.rotate(q, k, *angles), heads, heads) / 2,
        "swiglu": measure(operators.swiglu, x, x),
        "gelu": measure(operators.gelu, x, weight),
        "relu2": measure(operators.relu2, x, weight),
        "dropout_add": measure(lambda y, x: operators.dropout_add(y, x, 0.1, key), x, x),
    }


@pytest.fixture(scope="module")
def counted() -> tuple[dict[str, float], dict[str, float]]:
    pytest.importorskip("triton", reason="the extra `dev` brings it on Linux")
    pointwise = dict.fromkeys(("norm", "rotation", "activation", "dropout_add"), "triton")
    return calls(Operators.of()), calls(Operators.of(pointwise))


def test_the_documented_bytes_are_those_of_the_forms(counted):
    for name, row in re.findall(r"^\| `(\w+)`, per element \| (.*) \|$", TABLE, re.MULTILINE):
        eager, triton = (float(each) for each in row.split(" | ")[:2])
        assert (round(counted[0][name]), round(counted[1][name])) == (eager, triton), name
    assert len(counted[0]) == len(re.findall(r"per element \|", TABLE))
