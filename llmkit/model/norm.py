"""Normalisation with fp32 statistics, whatever the dtype of the activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.config.model_section import Norm
from llmkit.model.layers import Layer, uninitialized_parameter
from llmkit.parallel.collectives import Group, replicated_weight
from llmkit.parallel.slices import ParameterSlice, full_slice


class RMSNorm(Layer):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019).

    group: the ranks that apply the same weight to different activations, whose gradients are summed over it.
    """

    def __init__(self, size: int, eps: float, group: Group = None) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(size)
        self.size, self.eps, self.group = size, eps, group

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., size) -> the same shape and dtype."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * replicated_weight(self.weight, self.group).float()).to(x.dtype)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {"weight": [full_slice(f"{path}.weight", (self.size,))]}


class LayerNorm(Layer):
    """Layer norm with bias over the last dimension (Ba et al. 2016); group: as for RMSNorm."""

    def __init__(self, size: int, eps: float, group: Group = None) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(size)
        self.bias = uninitialized_parameter(size)
        self.size, self.eps, self.group = size, eps, group

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., size) -> the same shape and dtype; PyTorch's kernel keeps its statistics in fp32."""
        weight, bias = replicated_weight(self.weight, self.group), replicated_weight(self.bias, self.group)
        return F.layer_norm(x, (self.size,), weight, bias, self.eps)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {kind: [full_slice(f"{path}.{kind}", (self.size,))] for kind in ("weight", "bias")}


NORMS: dict[Norm, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def make_norm(kind: Norm, size: int, eps: float, group: Group = None) -> Layer:
    """The norm that the configuration names."""
    return NORMS[kind](size, eps, group)
