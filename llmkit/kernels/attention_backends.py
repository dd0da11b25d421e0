"""PyTorch's fused attention with one of its backends for a GPU put first.

Which of them is the fastest depends on the GPU, the versions of CUDA and cuDNN, and the sizes; PyTorch has a
fixed order. torch.compile traces through the choice: it decides which kernel the compiled code calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.backends import cuda
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmkit.config.operators import FLASH_PACKAGES
from llmkit.errors import UserError
from llmkit.kernels.attention import sdpa

_LAST = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
ORDERS: Mapping[str, list[SDPBackend]] = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_LAST],
    "flash": [SDPBackend.FLASH_ATTENTION, *_LAST],
    "efficient": [*_LAST],
}
"""Form -> the backends in the order in which they are tried: each call is served by the first that can."""


def prepare(form: str) -> None:
    """Makes PyTorch's flash attention that of a form: its own, or that of another package; of others nothing.

    It holds for the whole process, until the next call: PyTorch replaces what its operators of flash
    attention run on a GPU. Compiled code calls the same operators, so it needs no other graph and no other
    entry in the cache. Raises UserError where the package cannot be used.
    """
    if form not in ("flash", *FLASH_PACKAGES) or not hasattr(attention, "current_flash_attention_impl"):
        return  # an older PyTorch has its own only
    wanted = FLASH_PACKAGES[form][0] if form in FLASH_PACKAGES else None
    if attention.current_flash_attention_impl() == wanted:
        return
    if wanted is None:
        attention.restore_flash_attention_impl()
        return
    try:
        attention.activate_flash_attention_impl(wanted)
    except Exception as error:  # importing what others wrote can raise anything
        raise UserError(
            f"kernels.operators.attention {form}: PyTorch cannot use the package "
            f"{FLASH_PACKAGES[form][1]} ({type(error).__name__}: {error}); "
            "set kernels.operators.attention=flash"
        ) from error


def cudnn(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """As `llmkit.kernels.attention.sdpa`, by cuDNN."""
    return _ordered("cudnn", q, k, v, how)


def flash(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """As `llmkit.kernels.attention.sdpa`, by flash attention: the one that `prepare` was last called for."""
    return _ordered("flash", q, k, v, how)


def efficient(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """As `llmkit.kernels.attention.sdpa`, by the memory-efficient kernel."""
    return _ordered("efficient", q, k, v, how)


def _ordered(form: str, q: Tensor, k: Tensor, v: Tensor, how: dict[str, Any]) -> Tensor:
    if q.shape[1] != k.shape[1]:  # generation has its own order: `llmkit.kernels.attention.decoding`
        return sdpa(q, k, v, **how)
    with sdpa_kernel(ORDERS[form], set_priority=True):
        return sdpa(q, k, v, **how)


def serves(form: str, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether the backend of a form can compute plain causal attention of these, as this PyTorch says.

    q: (batch, seq, heads, head_dim); k, v: (batch, seq, kv_heads, head_dim).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    params = cuda.SDPAParams(q, k, v, None, dropout, True, k.shape[1] != q.shape[1])
    ask = {
        "cudnn": cuda.can_use_cudnn_attention,
        **dict.fromkeys(("flash", *FLASH_PACKAGES), cuda.can_use_flash_attention),
        "efficient": cuda.can_use_efficient_attention,
    }
    return ask[form](params)
