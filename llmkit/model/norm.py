"""Normalisation with fp32 statistics, whatever the dtype of the activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmkit.config.model_section import Norm
from llmkit.config.shape import ModelShape
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.layers import Layer, uninitialized_parameter
from llmkit.parallel.collectives import Group, copy_to_group, reduce_from_group, replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class RMSNorm(Layer):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019).

    group: the ranks that apply the same weight to different activations, whose gradients are summed over it.
    affine: whether it has a weight. offset: added to the weight (Gemma: 1).
    """

    def __init__(
        self,
        size: int,
        eps: float,
        group: Group = None,
        operators: Operators = TORCH,
        affine: bool = True,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(size) if affine else None
        self.size, self.eps, self.group = size, eps, group
        self.operators, self.offset = operators, offset

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Any:
        """x: (..., size) -> the same shape and dtype; with a branch: x + branch, and the norm of that sum.

        Both in a call of the module: before one, hooks of ZeRO-3 gather the weight.
        """
        weight = _summed(self.weight, self.group, self.offset)
        if branch is None:
            return self.operators.rms_norm(x, weight, self.eps)
        return self.operators.add_rms_norm(x, branch, weight, self.eps)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {"weight": [full_slice(f"{path}.weight", (self.size,))]}


class LayerNorm(Layer):
    """Layer norm over the last dimension (Ba et al. 2016); group, affine, offset as for RMSNorm."""

    def __init__(
        self,
        size: int,
        eps: float,
        group: Group = None,
        operators: Operators = TORCH,
        affine: bool = True,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(size) if affine else None
        self.bias = uninitialized_parameter(size) if affine else None
        self.size, self.eps, self.group = size, eps, group
        self.operators, self.offset = operators, offset

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Any:
        """As of RMSNorm."""
        weight, bias = _summed(self.weight, self.group, self.offset), _summed(self.bias, self.group)
        if branch is None:
            return self.operators.layer_norm(x, weight, bias, self.eps)
        return self.operators.add_layer_norm(x, branch, weight, bias, self.eps)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {kind: [full_slice(f"{path}.{kind}", (self.size,))] for kind in ("weight", "bias")}


class WidthRMSNorm(Layer):
    """RMS norm over all outputs of a projection, which tensor-parallel ranks share (OLMo 2's q_norm, k_norm).

    affine, offset: as for RMSNorm.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        tp: TensorParallel,
        operators: Operators = TORCH,
        affine: bool = True,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.eps, self.tp, self.operators, self.offset = size, eps, tp, operators, offset
        self.local = size // tp.size
        self.weight = uninitialized_parameter(self.local, sharded_dim=0) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., size / tp), this rank's outputs -> the same shape and dtype."""
        weight = _summed(self.weight, None, self.offset)
        if self.tp.size == 1:
            normed: Tensor = self.operators.rms_norm(x, weight, self.eps)
            return normed
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = reduce_from_group(wide.square().sum(-1, keepdim=True), self.tp.group)
        # Each rank uses the sum for its own outputs, so its gradient is summed, too.
        total = copy_to_group(total, self.tp.group)
        wide = wide * torch.rsqrt(total / self.size + self.eps)
        return (wide if weight is None else wide * weight).to(x.dtype)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        box = ((self.tp.rank * self.local, (self.tp.rank + 1) * self.local),)
        return {"weight": [ParameterSlice(f"{path}.weight", (self.size,), box, 0, self.local)]}


def _summed(parameter: Tensor | None, group: Group, offset: float = 0.0) -> Tensor | None:
    """The parameter, if there is one, with its gradient summed over the group.

    offset: added to it, in fp32: bf16 has too few digits for a weight near 0 and one near 1.
    """
    if parameter is None:
        return None
    weight = replicated_weight(parameter, group)
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset if offset else weight


NORMS: dict[Norm, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def make_norm(
    kind: Norm,
    size: int,
    eps: float,
    group: Group = None,
    operators: Operators = TORCH,
    affine: bool = True,
    offset: float = 0.0,
) -> RMSNorm | LayerNorm:
    """The norm that the configuration names; affine: with its parameters."""
    return NORMS[kind](size, eps, group, operators, affine, offset)


def residual_norm(shape: ModelShape, tp: TensorParallel, operators: Operators) -> RMSNorm | LayerNorm:
    """A norm of the residual stream as the settings describe it."""
    affine, offset = shape.norm_weight, shape.norm_weight_offset
    size = (shape.hidden_size, shape.norm_eps)
    return make_norm(shape.norm, *size, tp.sequence_group, operators, affine, offset)
