"""Low-rank adapters of linear layers (Hu et al. 2021, LoRA): W x + (alpha / rank) B A x, with W frozen.

Full tensors: `lora_A` (rank, inputs) and `lora_B` (outputs, rank) of each adapted projection, named as PEFT
names them. Under tensor parallelism a column-parallel layer's B is sharded as its weight is, and ranks
exchange the output of its A, which is `rank` wide; a row-parallel layer's A is sharded, and what its B gives
is summed together with the layer's own output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.config.adapters import LORA_A, LORA_B, is_target
from llmkit.config.lora_section import Lora
from llmkit.config.mistakes import display
from llmkit.errors import UserError
from llmkit.model.base import Model
from llmkit.model.block import Block
from llmkit.model.layers import FusedColumnLinear, Layer, RowLinear, column_input, uninitialized_parameter
from llmkit.parallel.collectives import replicated_weight
from llmkit.parallel.slices import ParameterSlice


class Adapter(Layer):
    """What the adapters of both kinds of layers have in common."""

    def __init__(self, lora: Lora) -> None:
        super().__init__()
        self.rank, self.scale, self.dropout = lora.rank, lora.alpha / lora.rank, lora.input_dropout

    def dropped(self, x: Tensor) -> Tensor:
        """The input with dropout, in training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class ColumnAdapter(Adapter):
    """Adapters of some projections of a `FusedColumnLinear`; all their A are one matrix, and all their B."""

    def __init__(self, layer: FusedColumnLinear, names: Collection[str], lora: Lora) -> None:
        super().__init__(lora)
        self.in_features, self.tp = layer.in_features, layer.tp
        self.names = [name for name in layer.projections if name in names]
        local = dict(zip(layer.projections, layer.widths, strict=True))
        self.outputs = [(layer.projections[name], local[name]) for name in self.names]
        self.index = [list(layer.projections).index(name) for name in self.names]
        self.lora_A = uninitialized_parameter(len(self.names) * self.rank, layer.in_features)
        self.lora_B = uninitialized_parameter(sum(w for _, w in self.outputs), self.rank, sharded_dim=0)

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """x: (batch, seq, in_features), or its piece; outputs: the layer's -> the same with what is added."""
        low = F.linear(self.dropped(x), replicated_weight(self.lora_A, self.tp.sequence_group))
        low = column_input(low * self.scale, self.tp)  # (batch, seq, names * rank)
        added = list(outputs)
        weights = self.lora_B.split([width for _, width in self.outputs])
        for index, each, weight in zip(self.index, low.split(self.rank, -1), weights, strict=True):
            added[index] = outputs[index] + F.linear(each, weight)
        return tuple(added)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        parent = path.rsplit(".", 2)[0] + "." if path.count(".") > 1 else ""
        slices: dict[str, list[ParameterSlice]] = {LORA_A: [], LORA_B: []}
        start = 0
        for number, (name, (width, local)) in enumerate(zip(self.names, self.outputs, strict=True)):
            shape, first = (self.rank, self.in_features), number * self.rank
            box = ((0, self.rank), (0, self.in_features))
            slices[LORA_A].append(
                ParameterSlice(f"{parent}{name}.{LORA_A}", shape, box, first, first + self.rank)
            )
            box = ((self.tp.rank * local, (self.tp.rank + 1) * local), (0, self.rank))
            shape = (width, self.rank)
            slices[LORA_B].append(
                ParameterSlice(f"{parent}{name}.{LORA_B}", shape, box, start, start + local)
            )
            start += local
        return slices


class RowAdapter(Adapter):
    """The adapter of a `RowLinear`."""

    def __init__(self, layer: RowLinear, lora: Lora) -> None:
        super().__init__(lora)
        self.in_features, self.out_features, self.tp = layer.in_features, layer.out_features, layer.tp
        share = layer.in_features // layer.tp.size
        self.lora_A = uninitialized_parameter(self.rank, share, sharded_dim=1)
        self.lora_B = uninitialized_parameter(layer.out_features, self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features / tp) -> this rank's term of what is added, (..., out_features)."""
        low = F.linear(self.dropped(x), self.lora_A) * self.scale
        return F.linear(low, replicated_weight(self.lora_B, self.tp.group))

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        layer, local = path.rpartition(".")[0], self.in_features // self.tp.size
        inputs = (self.tp.rank * local, (self.tp.rank + 1) * local)
        a, b = (self.rank, self.in_features), (self.out_features, self.rank)
        return {
            LORA_A: [ParameterSlice(f"{layer}.{LORA_A}", a, ((0, self.rank), inputs), 0, self.rank)],
            LORA_B: [ParameterSlice(f"{layer}.{LORA_B}", b, ((0, b[0]), (0, b[1])), 0, b[0])],
        }


def add_adapters(model: Model, lora: Lora) -> None:
    """Freezes the model's weights and gives adapters, without values, to the layers that are targets.

    Adapters are made on the current device, in the current default type.
    Raises UserError for a pattern that no linear layer of the blocks matches.
    """
    layers = list(_layers(model))
    names = [name for _, found in layers for name in found]
    for pattern in lora.targets:
        if not any(is_target(name, [pattern]) for name in names):
            raise UserError(
                f"train.lora.targets: no linear layer of {type(model).__name__} matches {display(pattern)}"
            )
    model.requires_grad_(False)
    for layer, found in layers:
        mine = {name.rpartition(".")[2] for name in found if is_target(name, lora.targets)}
        if mine and isinstance(layer, FusedColumnLinear):
            layer.adapter = ColumnAdapter(layer, mine, lora)
        elif mine and isinstance(layer, RowLinear):
            layer.adapter = RowAdapter(layer, lora)
    for module in model.modules():
        if isinstance(module, Block):
            module.random = module.random or lora.input_dropout > 0.0
    model.adapted = True


def _layers(model: Model) -> Iterator[tuple[Layer, list[str]]]:
    """The linear layers of repeated blocks, with the full names of their projections."""
    lists = tuple(
        f"{path}." for path, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)
    )
    for path, module in model.named_modules():
        if isinstance(module, (FusedColumnLinear, RowLinear)) and path.startswith(lists):
            yield (
                module,
                [each.name.removesuffix(".weight") for each in module.parameter_slices(path)["weight"]],
            )
