"""Normalisation with fp32 statistics, whatever the dtype of the activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmkit.config.model_section import Norm
from llmkit.config.shape import ModelShape
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.layers import Layer, uninitialized_parameter
from llmkit.parallel.collectives import Group, replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class RMSNorm(Layer):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019).

    group: the ranks that apply the same weight to different activations, whose gradients are summed over it.
    affine: whether it has a weight.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        group: Group = None,
        operators: Operators = TORCH,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(size) if affine else None
        self.size, self.eps, self.group, self.operators = size, eps, group, operators

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Any:
        """x: (..., size) -> the same shape and dtype; with a branch: x + branch, and the norm of that sum.

        Both in a call of the module: before one, hooks of ZeRO-3 gather the weight.
        """
        weight = _summed(self.weight, self.group)
        if branch is None:
            return self.operators.rms_norm(x, weight, self.eps)
        return self.operators.add_rms_norm(x, branch, weight, self.eps)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {"weight": [full_slice(f"{path}.weight", (self.size,))]}


class LayerNorm(Layer):
    """Layer norm over the last dimension (Ba et al. 2016); group, affine: weight and bias, as for RMSNorm."""

    def __init__(
        self,
        size: int,
        eps: float,
        group: Group = None,
        operators: Operators = TORCH,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(size) if affine else None
        self.bias = uninitialized_parameter(size) if affine else None
        self.size, self.eps, self.group, self.operators = size, eps, group, operators

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Any:
        """As of RMSNorm."""
        weight, bias = _summed(self.weight, self.group), _summed(self.bias, self.group)
        if branch is None:
            return self.operators.layer_norm(x, weight, bias, self.eps)
        return self.operators.add_layer_norm(x, branch, weight, bias, self.eps)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {kind: [full_slice(f"{path}.{kind}", (self.size,))] for kind in ("weight", "bias")}


def _summed(parameter: Tensor | None, group: Group) -> Tensor | None:
    """The parameter, if there is one, with its gradient summed over the group."""
    return None if parameter is None else replicated_weight(parameter, group)


NORMS: dict[Norm, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def make_norm(
    kind: Norm,
    size: int,
    eps: float,
    group: Group = None,
    operators: Operators = TORCH,
    affine: bool = True,
) -> RMSNorm | LayerNorm:
    """The norm that the configuration names; affine: with its parameters."""
    return NORMS[kind](size, eps, group, operators, affine)


def residual_norm(shape: ModelShape, tp: TensorParallel, operators: Operators) -> RMSNorm | LayerNorm:
    """A norm of the residual stream as the settings describe it."""
    return make_norm(
        shape.norm, shape.hidden_size, shape.norm_eps, tp.sequence_group, operators, shape.norm_weight
    )
