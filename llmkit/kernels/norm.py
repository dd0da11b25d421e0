"""Norms over the last dimension, with statistics in fp32 or wider, whatever the type of the activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019). x: (..., size).

    weight: (size,), or None: ones, without a parameter; it may be of a wider type than x.
    """
    if weight is not None and weight.dtype != x.dtype:
        return F.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, eps).to(x.dtype)
    return F.rms_norm(x, (x.shape[-1],), weight, eps).to(x.dtype)


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x + branch, and the RMS norm of that sum."""
    x = x + branch
    return x, rms_norm(x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016). x: (..., size).

    weight, bias: (size,) each, or None both: ones and zeros, without parameters. The weight may be of a wider
    type than x.
    """
    on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    if weight is not None and bias is not None and (on_cpu or weight.dtype != x.dtype):
        # PyTorch's kernel would add up the gradients of weight and bias in bf16: off by 5 % after 2,048 rows.
        return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float(), eps).to(x.dtype)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)  # keeps its statistics in fp32


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """x + branch, and the layer norm of that sum."""
    x = x + branch
    return x, layer_norm(x, weight, bias, eps)
