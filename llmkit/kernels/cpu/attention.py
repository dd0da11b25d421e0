"""Causal attention on CPUs with AVX-512 BF16, by a kernel of our own (`attention.cpp`)."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmkit.kernels.attention_blocks import blocks
from llmkit.kernels.cpu.load import enough_memory, load


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    bounds: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `llmkit.kernels.attention.sdpa`. Of masks it knows the causal one: what needs more is `blocks`'."""
    masked = documents is not None or (window is not None and window < k.shape[1])
    if q.dtype != torch.bfloat16 or q.shape[1] != k.shape[1] or masked or dropout or softcap is not None:
        return blocks(
            q, k, v, window=window, documents=documents, dropout=dropout, softcap=softcap, scale=scale
        )
    if q.shape[-1] % 2 or v.shape[-1] != q.shape[-1]:
        return blocks(q, k, v, scale=scale)
    output, _ = causal_attention(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    return output


@torch.library.custom_op("llmkit::causal_attention", mutates_args=(), device_types="cpu")
def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output, of the shape of q, and the logarithms of the sums of exponentials (batch, heads, seq)."""
    output, logs = _empty(q)
    _call((q, k, v, output), logs, scale, backward=False)
    return output, logs


@causal_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _empty(q)


@torch.library.custom_op("llmkit::causal_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, logs: Tensor, gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    found = tuple(torch.empty(each.shape, dtype=each.dtype) for each in (q, k, v))
    _call((q, k, v, output, gradient, *found), logs, scale, backward=True)
    return found[0], found[1], found[2]


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, logs: Tensor, gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, gradient, ctx.scale), None


causal_attention.register_autograd(_differentiate, setup_context=_keep)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, length, dtype=torch.float32)


def _call(tensors: tuple[Tensor, ...], logs: Tensor, scale: float, backward: bool) -> None:
    tensors = tuple(each if each.stride(-1) == 1 else each.contiguous() for each in tensors)
    q, k = tensors[:2]
    batch, length, heads, width = q.shape
    sizes = (ctypes.c_int64 * 5)(batch, length, heads, k.shape[2], width)
    described = [n for t in tensors for n in (t.data_ptr(), t.stride(0), t.stride(1), t.stride(2))]
    _library().attention(
        sizes, scale, (ctypes.c_int64 * len(described))(*described), logs.data_ptr(), backward,
        torch.get_num_threads(),
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    library: Any = load("attention.cpp")
    array = ctypes.POINTER(ctypes.c_int64)
    library.attention.argtypes = [array, ctypes.c_double, array, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.attention.restype, library.attention.errcheck = ctypes.c_int, enough_memory
    return library
