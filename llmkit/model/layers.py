"""Layers whose parameters may be sharded over tensor-parallel ranks (Shoeybi et al. 2019, Megatron-LM).

A column-parallel linear layer followed by a row-parallel one needs one all-reduce forward and one backward.
Under sequence parallelism these are a reduce-scatter and an all-gather, and what lies between a row-parallel
layer and the next column-parallel one is a piece of the sequence, (seq / tp, batch, width): with the sequence
as the first dimension a collective reads and writes contiguous memory, whatever the batch.

Parameters are made without values: those come from `llmkit.model.initial` or from a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmkit.config.operators import QUANTISED
from llmkit.errors import UserError
from llmkit.kernels.linear_products import PRODUCTS, column_linear
from llmkit.kernels.operators import TORCH, Operators
from llmkit.kernels.quantised import QuantisedWeight
from llmkit.kernels.split import split
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
    """A module with parameters of its own that hold slices of named full tensors."""

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """Name of each own parameter -> the slices in it; `path` is the module's name in the model.

        Computed from sizes alone: under ZeRO-3 a parameter that is not in use is empty.
        """
        raise NotImplementedError


def uninitialized_parameter(*size: int, sharded_dim: int | None = None) -> nn.Parameter:
    """A parameter whose values are not set, placed on the mesh.

    sharded_dim: its dimension along which tensor parallelism shards it; None: every rank holds all of it.
    """
    parameter = nn.Parameter(torch.empty(size))
    place(parameter, REPLICATED if sharded_dim is None else tensor_sharded(sharded_dim))
    return parameter


def _weight(
    rows: int, columns: int, sharded_dim: int, operators: Operators
) -> nn.Parameter | QuantisedWeight:
    """The weight of a linear layer, without values, as the form of its product takes it."""
    form = operators.forms["linear"]
    if form in QUANTISED:
        return QuantisedWeight(form, rows, columns)
    return uninitialized_parameter(rows, columns, sharded_dim=sharded_dim)


def sequence_first(x: Tensor, tp: TensorParallel) -> Tensor:
    """(batch, seq, ...) <-> (seq, batch, ...) under sequence parallelism, else x itself. A view."""
    return x.transpose(0, 1) if tp.sequence_parallel else x


def column_input(x: Tensor, tp: TensorParallel) -> Tensor:
    """Input of a column-parallel layer: (batch, seq, width) or its piece -> (batch, seq, width)."""
    if not tp.sequence_parallel:
        return copy_to_group(x, tp.group)
    return sequence_first(all_gather(x, 0, tp.group), tp)


def row_output(x: Tensor, tp: TensorParallel) -> Tensor:
    """Sum over the ranks of what a row-parallel layer computes, or its piece; x: `sequence_first`."""
    return reduce_scatter(x, 0, tp.group) if tp.sequence_parallel else reduce_from_group(x, tp.group)


def _share(what: str, size: int, tp: TensorParallel) -> int:
    """A rank's part of a size. Raises UserError, which names it, where it does not divide."""
    if size % tp.size:
        raise UserError(f"the {what}, {size}, is not divisible by the {tp.size} tensor-parallel ranks")
    return size // tp.size


class FusedColumnLinear(Layer):
    """Projections of one input in one matrix product, each sharded evenly by its outputs.

    projections: name -> full output width. Checkpoints hold each under its own name (`q_proj.weight`, ...),
    so that it can be read under another sharding.
    """

    def __init__(
        self,
        in_features: int,
        projections: dict[str, int],
        bias: bool,
        tp: TensorParallel,
        operators: Operators = TORCH,
    ) -> None:
        super().__init__()
        self.in_features, self.projections, self.tp = in_features, projections, tp
        self.operators = operators
        self.widths = tuple(
            _share(f"output width of {name}", width, tp) for name, width in projections.items()
        )
        self.weight = _weight(sum(self.widths), in_features, 0, operators)
        self.bias = uninitialized_parameter(sum(self.widths), sharded_dim=0) if bias else None
        self.adapter: nn.Module | None = None
        """Adds to the outputs, as `llmkit.model.lora.ColumnAdapter`."""

    def forward(self, x: Tensor, add_bias: bool = True) -> tuple[Tensor, ...]:
        """x: (batch, seq, in_features), or its piece -> for each projection (batch, seq, width / tp).

        add_bias: False where what follows adds it.
        """
        outputs = self._outputs(x, self.bias if add_bias else None)
        return outputs if self.adapter is None else self.adapter(x, outputs)

    def _outputs(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        linear, form = self.operators.linear, self.operators.forms["linear"]
        if self.tp.size == 1:
            return split(linear(x, self.weight, bias), self.widths)
        if form not in PRODUCTS or isinstance(self.weight, QuantisedWeight):  # no two gradients to overlap
            return split(linear(column_input(x, self.tp), self.weight, bias), self.widths)
        pieces = self.tp.sequence_parallel
        outputs = column_linear(x, self.weight, bias, self.tp.group, pieces=pieces, form=form)
        return tuple(sequence_first(each, self.tp) for each in split(outputs, self.widths))

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        parent, dot, _ = path.rpartition(".")
        inputs, start = self.in_features, 0
        slices: dict[str, list[ParameterSlice]] = {"weight": [], "bias": []}
        for (name, width), local in zip(self.projections.items(), self.widths, strict=True):
            outputs, stop = (self.tp.rank * local, (self.tp.rank + 1) * local), start + local
            weight, bias = f"{parent}{dot}{name}.weight", f"{parent}{dot}{name}.bias"
            box = (outputs, (0, inputs))
            slices["weight"].append(ParameterSlice(weight, (width, inputs), box, start, stop))
            slices["bias"].append(ParameterSlice(bias, (width,), (outputs,), start, stop))
            start = stop
        return slices


class RowLinear(Layer):
    """A linear layer sharded by its inputs. Every rank holds its bias, which is added once, after the sum."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        tp: TensorParallel,
        operators: Operators = TORCH,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.tp = in_features, out_features, tp
        self.linear = operators.linear
        share = _share("input width of a RowLinear", in_features, tp)
        self.weight = _weight(out_features, share, 1, operators)
        self.bias = uninitialized_parameter(out_features) if bias else None
        self.adapter: nn.Module | None = None
        """Gives this rank's term of what is added to the output, as `llmkit.model.lora.RowAdapter`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, in_features / tp) -> (batch, seq, out_features), or its piece of the sequence."""
        if self.tp.size == 1:
            return self._output(x, self.bias)
        x = row_output(self._output(sequence_first(x, self.tp)), self.tp)
        if self.bias is None:
            return x
        return x + replicated_weight(self.bias, self.tp.sequence_group)

    def _output(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """This rank's term of the output."""
        output: Tensor = self.linear(x, self.weight, bias)
        return output if self.adapter is None else output + self.adapter(x)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        local = self.in_features // self.tp.size
        inputs = (self.tp.rank * local, (self.tp.rank + 1) * local)
        outputs = self.out_features
        box = ((0, outputs), inputs)
        weight = ParameterSlice(f"{path}.weight", (outputs, self.in_features), box, 0, outputs)
        return {"weight": [weight], "bias": [full_slice(f"{path}.bias", (outputs,))]}
