"""Activation checkpointing: what is kept for the backward pass, and what is computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten, _sums = torch.ops.aten, torch.ops._c10d_functional
KEPT = frozenset(
    (
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_mm.default,
        _aten.topk.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _sums.all_reduce.default,
        _sums.all_gather_into_tensor.default,
        _sums.all_to_all_single.default,
        _sums.reduce_scatter_tensor.default,
        _sums.wait_tensor.default,
    )
)
"""Results that "selective" keeps: of matrix products, attention and communication; and the choice of experts,
in whose order their results are kept: compiled code may round scores differently when it makes them again."""
KEPT_BY_NAME = frozenset(
    ("torch_attn::_varlen_attn", "llmkit::ring_attention", "llmkit::grouped_linear")
)
"""The same of operations that are registered when their module is imported."""


def _policy(_context: Any, operation: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    kept = operation in KEPT or getattr(operation, "_name", None) in KEPT_BY_NAME
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_SELECTIVE: Any = partial(create_selective_checkpoint_contexts, _policy)
# What PyTorch's cache of compiled code knows the policy by; without it nothing that uses it is kept.
_SELECTIVE.cache_hash = " ".join(sorted({*map(str, KEPT), *KEPT_BY_NAME}))


def recomputed(how: str, function: Callable[..., Any], *arguments: Any, random: bool) -> Any:
    """function(*arguments), some of whose activations are computed again in the backward pass.

    how: "full" keeps only the arguments, "selective" also the results in `KEPT`; "none" keeps all, as does
    a call without gradients. random: whether the function draws random numbers, to be drawn again then.
    """
    if how == "none" or not torch.is_grad_enabled():
        return function(*arguments)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if how == "selective":
        options["context_fn"] = _SELECTIVE
    return checkpoint(function, *arguments, **options)
