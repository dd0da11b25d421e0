"""Dropout of a branch and its addition to the residual stream in one pass, without a mask that is kept.

Contract: `llmkit.kernels.dropout`. What is dropped is computed from the key, in the backward pass once more;
without a key one is drawn from PyTorch's generator of the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmkit.kernels.triton.launch import arithmetic, require_shape
from llmkit.kernels.triton.operation import Operation

BLOCK = 1024
"""Elements of a program."""


@triton.jit
def _mix(x):
    """As `llmkit.parallel.randomness`, in 32 bits that wrap."""
    x = (x ^ (x >> 16)) * 0x045D9F3B
    x = (x ^ (x >> 16)) * 0x045D9F3B
    return x ^ (x >> 16)


@triton.jit
def _kernel(
    branch_ptr, x_ptr, y_ptr, key_ptr, numel,
    THRESHOLD: tl.constexpr, KEPT: tl.constexpr, ADD: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr)
    low, high = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    bits = _mix(_mix(index.to(tl.uint32) ^ low) ^ high) >> 8
    branch = tl.load(branch_ptr + index, mask=index < numel, other=0.0).to(TYPE)
    y = tl.where(bits < THRESHOLD, 0.0, branch / tl.full((), KEPT, TYPE))
    if ADD:
        y += tl.load(x_ptr + index, mask=index < numel, other=0.0).to(TYPE)
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=index < numel)


def _launch(branch: Tensor, x: Tensor | None, y: Tensor, probability: float, key: Tensor) -> None:
    branch = branch.contiguous()
    _kernel[(triton.cdiv(y.numel(), BLOCK),)](
        branch, branch if x is None else x.contiguous(), y, key, y.numel(),
        THRESHOLD=round(probability * 2**24), KEPT=1.0 - probability, ADD=x is not None,
        TYPE=arithmetic(branch), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def _forward(branch: Tensor, x: Tensor, probability: float, key: Tensor) -> Tensor:
    require_shape("the branch", branch, *x.shape)
    y = x.new_empty(x.shape)
    if y.numel():
        _launch(branch, x, y, probability, key)
    return y


def _backward(dy: Tensor, probability: float, key: Tensor) -> Tensor:
    dbranch = dy.new_empty(dy.shape)
    if dy.numel():
        _launch(dy, None, dbranch, probability, key)
    return dbranch


def _keep_key(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.probability, key = inputs
    ctx.save_for_backward(key)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
    (key,) = ctx.saved_tensors
    return _dropout_backward(dy, ctx.probability, key), dy, None, None


_dropout_backward = Operation(
    "dropout_backward", _backward, lambda dy, probability, key: dy.new_empty(dy.shape)
)
_dropout_add = Operation(
    "dropout_add", _forward, lambda branch, x, probability, key: x.new_empty(x.shape)
).with_gradients(_keep_key, _gradients)


def dropout_add(branch: Tensor, x: Tensor, probability: float, key: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.dropout.dropout_add`."""
    if probability == 0.0:
        return x + branch
    if key is None:
        key = torch.randint(1 << 62, (), device=x.device)
    return _dropout_add(branch, x, probability, key)
