"""Rotary positions of queries and keys in one pass, in place where nobody else sees their old values.

Contract: `llmkit.kernels.rotation`. The backward pass is the rotation by the opposite angles.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmkit.kernels.triton.launch import arithmetic, require_shape
from llmkit.kernels.triton.operation import Operation, recorded


@triton.jit
def _rotate_heads(
    from_ptr, to_ptr, cos, sin, heads, half, from_stride, to_stride,
    TYPE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The heads of one position; the pointers are at its first element."""
    head, pair = tl.arange(0, HEADS), tl.arange(0, HALF)
    inside = (head < heads)[:, None] & (pair < half)[None, :]
    source = from_ptr + head[:, None] * from_stride + pair[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(TYPE)
    second = tl.load(source + half, mask=inside, other=0.0).to(TYPE)
    target = to_ptr + head[:, None] * to_stride + pair[None, :]
    kind = to_ptr.dtype.element_ty
    tl.store(target, (first * cos[None, :] - second * sin[None, :]).to(kind), mask=inside)
    tl.store(target + half, (second * cos[None, :] + first * sin[None, :]).to(kind), mask=inside)


@triton.jit
def _kernel(
    q_ptr, k_ptr, new_q_ptr, new_k_ptr, cos_ptr, sin_ptr, seq, q_heads, k_heads, half, cos_stride, sin_stride,
    q_batch, q_seq, q_head, k_batch, k_seq, k_head,
    new_q_batch, new_q_seq, new_q_head, new_k_batch, new_k_seq, new_k_head,
    INVERSE: tl.constexpr, TYPE: tl.constexpr,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) // seq
    position = tl.program_id(0).to(tl.int64) % seq
    pair = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + position * cos_stride + pair, mask=pair < half, other=0.0).to(TYPE)
    sin = tl.load(sin_ptr + position * sin_stride + pair, mask=pair < half, other=0.0).to(TYPE)
    if INVERSE:
        sin = -sin
    _rotate_heads(
        q_ptr + row * q_batch + position * q_seq, new_q_ptr + row * new_q_batch + position * new_q_seq,
        cos, sin, q_heads, half, q_head, new_q_head, TYPE, Q_HEADS, HALF,
    )  # fmt: skip
    _rotate_heads(
        k_ptr + row * k_batch + position * k_seq, new_k_ptr + row * new_k_batch + position * new_k_seq,
        cos, sin, k_heads, half, k_head, new_k_head, TYPE, K_HEADS, HALF,
    )  # fmt: skip


def _launch(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, new_q: Tensor, new_k: Tensor, inverse: bool
) -> None:
    """Writes the rotated q and k into new_q and new_k, which may be q and k."""
    batch, seq, q_heads, head_dim = q.shape
    k_heads, half = k.shape[2], head_dim // 2
    require_shape("k", k, batch, seq, k_heads, head_dim)
    require_shape("the cosines of positions", cos, seq, half)
    require_shape("the sines of positions", sin, seq, half)
    if q.numel() == 0:
        return
    widths = [triton.next_power_of_2(size) for size in (q_heads, k_heads, half)]
    _kernel[(batch * seq,)](
        q, k, new_q, new_k, cos, sin, seq, q_heads, k_heads, half, cos.stride(0), sin.stride(0),
        *q.stride()[:3], *k.stride()[:3], *new_q.stride()[:3], *new_k.stride()[:3],
        INVERSE=inverse, TYPE=arithmetic(q), Q_HEADS=widths[0], K_HEADS=widths[1], HALF=widths[2],
        num_warps=min(8, max(1, widths[0] * widths[2] // 256)),
    )  # fmt: skip


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    new_q, new_k = _empty(q, k)
    dense = [_dense_last(each) for each in (q, k, cos, sin)]
    _launch(dense[0], dense[1], dense[2], dense[3], new_q, new_k, inverse)
    return new_q, new_k


def _empty(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _keep_angles(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, cos, sin, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _rotate_back(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    return *_rotated(dq, dk, *ctx.saved_tensors, not ctx.inverse), None, None, None


_rotated = Operation("rotate", _forward, _empty).with_gradients(_keep_angles, _rotate_back)


class _InPlace(torch.autograd.Function):
    """q and k themselves, with their values overwritten.

    They are not marked as changed (`mark_dirty`): with v they are views of one projection, and PyTorch then
    refuses the use of v. Neither the projection nor a norm behind it needs its own output in the backward
    pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        _launch(q, k, cos, sin, q, k, False)
        return q, k

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        return *_rotated(dq, dk, *ctx.saved_tensors, True), None, None


def _overlap(q: Tensor, k: Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor, or of q and k that are the same."""
    expanded = any(0 in each.stride() and each.numel() for each in (q, k))
    return expanded or q.data_ptr() == k.data_ptr()


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `llmkit.kernels.rotation.rotate`. Afterwards q and k may hold the rotated values.

    They do not where operations are recorded: by torch.compile, or by activation checkpointing that keeps
    the projection and rotates it a second time. Nor where two elements lie in one place.
    """
    dense = all(each.stride(-1) == 1 for each in (q, k, cos, sin))
    if recorded(q) or not dense or _overlap(q, k):
        rotated: tuple[Tensor, Tensor] = _rotated(q, k, cos, sin, False)
        return rotated
    return _InPlace.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
