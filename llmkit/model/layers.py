"""Linear layers whose matrix may be cut over a tensor-parallel group (Shoeybi et al. 2019, Megatron-LM).

A pair of them, cut by outputs and then by inputs, needs one sum over the group in each direction.
Nothing is drawn at construction: weights come from `llmkit.model.initial` or from a checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.parallel.collectives import (
    all_gather,
    copy_to_group,
    reduce_from_group,
    reduce_scatter,
    replicated_weight,
)
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.placement import REPLICATED, place, tensor_sharded
from llmkit.parallel.slices import ParameterSlice, full_slice


class Layer(nn.Module):
    """A module that owns parameters, and knows of which full tensors they are parts."""

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """The parts in each own parameter; `path` is the module's in the model.

        From sizes alone: under ZeRO-3 a parameter that is not in use is empty.
        """
        raise NotImplementedError


def uninitialized_parameter(*size: int, sharded_dim: int | None = None) -> nn.Parameter:
    """A parameter whose values are not set, placed on the mesh.

    sharded_dim: its dimension along which tensor parallelism shards it; None: every rank holds all of it.
    """
    parameter = nn.Parameter(torch.empty(size))
    place(parameter, REPLICATED if sharded_dim is None else tensor_sharded(sharded_dim))
    return parameter


def column_input(x: Tensor, tensor: TensorParallel) -> Tensor:
    """The input of a layer that is cut: (batch, seq or its piece, width) -> (batch, seq, width)."""
    return all_gather(x, 1, tensor.group) if tensor.sequence_parallel else copy_to_group(x, tensor.group)


def row_output(x: Tensor, tensor: TensorParallel) -> Tensor:
    """The output of a layer that is cut: the ranks' sum (batch, seq, width), or its piece of the sequence."""
    return (
        reduce_scatter(x, 1, tensor.group) if tensor.sequence_parallel else reduce_from_group(x, tensor.group)
    )


class FusedColumnLinear(Layer):
    """Projections of one input side by side: one matrix product instead of several small ones.

    `projections` maps each projection's name to its full output width; in checkpoints they keep these
    names (`q_proj.weight`, ...), so that a layout that cuts them differently can read them. Each is cut
    evenly by outputs.
    """

    def __init__(
        self, in_features: int, projections: dict[str, int], bias: bool, tensor: TensorParallel
    ) -> None:
        super().__init__()
        self.in_features, self.projections, self.tensor = in_features, projections, tensor
        self.widths = tuple(width // tensor.size for width in projections.values())
        rows = sum(self.widths)
        self.weight = uninitialized_parameter(rows, in_features, sharded_dim=0)
        self.bias = uninitialized_parameter(rows, sharded_dim=0) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (..., in_features) -> one (..., local width) tensor for each projection."""
        x = column_input(x, self.tensor)
        return F.linear(x, self.weight, self.bias).split(self.widths, dim=-1)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parts`."""
        prefix, start = path.rpartition(".")[0], 0
        parts: dict[str, list[ParameterSlice]] = {"weight": [], "bias": []}
        for (name, width), local in zip(self.projections.items(), self.widths, strict=True):
            rows, stop = (self.tensor.rank * local, (self.tensor.rank + 1) * local), start + local
            inputs = self.in_features
            weight = ParameterSlice(
                f"{prefix}.{name}.weight", (width, inputs), (rows, (0, inputs)), start, stop
            )
            parts["weight"].append(weight)
            parts["bias"].append(ParameterSlice(f"{prefix}.{name}.bias", (width,), (rows,), start, stop))
            start = stop
        return parts


class RowLinear(Layer):
    """A linear layer cut by inputs; its bias is held by all ranks, and added once."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tensor: TensorParallel) -> None:
        super().__init__()
        self.in_features, self.out_features, self.tensor = in_features, out_features, tensor
        self.weight = uninitialized_parameter(out_features, in_features // tensor.size, sharded_dim=1)
        self.bias = uninitialized_parameter(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, local in_features) -> (batch, seq or its piece, out_features)."""
        if self.tensor.size == 1:
            return F.linear(x, self.weight, self.bias)
        x = row_output(F.linear(x, self.weight), self.tensor)
        if self.bias is None:
            return x
        return x + replicated_weight(self.bias, self.tensor.group if self.tensor.sequence_parallel else None)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parts`."""
        local = self.in_features // self.tensor.size
        columns = (self.tensor.rank * local, (self.tensor.rank + 1) * local)
        shape = (self.out_features, self.in_features)
        weight = ParameterSlice(f"{path}.weight", shape, ((0, shape[0]), columns), 0, shape[0])
        return {"weight": [weight], "bias": [full_slice(f"{path}.bias", shape[:1])]}
