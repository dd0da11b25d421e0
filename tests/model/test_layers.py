"""Sharded linear layers against torch's; the shards are put together by hand. Ranks: test_tensor_parallel."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from llmkit.model.layers import FusedColumnLinear, RowLinear
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice
from tests.shapes import randomise

PROJECTIONS = {"q_proj": 6, "k_proj": 4, "v_proj": 2}


@pytest.mark.parametrize("bias", [False, True])
def test_projections_side_by_side_are_those_one_by_one(bias):
    layer = randomise(FusedColumnLinear(5, PROJECTIONS, bias, TensorParallel()))
    x = torch.randn(2, 3, 5)
    slices = layer.parameter_slices("blocks.0.qkv")
    for found, (name, width), weight, rows in zip(
        layer(x), PROJECTIONS.items(), slices["weight"], slices["bias"], strict=True
    ):
        assert (weight.name, weight.shape) == (f"blocks.0.{name}.weight", (width, 5))
        assert (rows.name, rows.shape) == (f"blocks.0.{name}.bias", (width,))
        wanted = F.linear(
            x, layer.weight[weight.start : weight.stop], layer.bias[rows.start : rows.stop] if bias else None
        )
        torch.testing.assert_close(found, wanted)


def test_each_rank_holds_its_outputs_or_inputs():
    def held(rank: int) -> tuple[list[ParameterSlice], list[ParameterSlice]]:
        tp = TensorParallel(rank, 2)
        column = FusedColumnLinear(5, PROJECTIONS, False, tp).parameter_slices("a.qkv")["weight"]
        return column, RowLinear(6, 3, True, tp).parameter_slices("a.o_proj")["weight"]

    column, row = held(1)
    assert [each.box for each in column] == [((3, 6), (0, 5)), ((2, 4), (0, 5)), ((1, 2), (0, 5))]
    assert [(each.start, each.stop) for each in column] == [(0, 3), (3, 5), (5, 6)]
    assert row == [ParameterSlice("a.o_proj.weight", (3, 6), ((0, 3), (3, 6)), 0, 3)]
    assert held(0)[1][0].box == ((0, 3), (0, 3))


def test_a_row_layer_of_one_rank_is_linear():
    layer = randomise(RowLinear(6, 3, True, TensorParallel()))
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    (bias,) = layer.parameter_slices("a.o_proj")["bias"]
    assert (bias.name, bias.box) == ("a.o_proj.bias", ((0, 3),))


class Copies(TorchDispatchMode):
    """Elements of the tensors that were copied to be laid out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.elements += found.numel()
        return found


def test_pieces_of_several_sequences_are_communicated_without_copies():
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())  # communicates nothing
    try:
        tp = TensorParallel(0, 2, dist.group.WORLD, sequence_parallel=True)
        column = randomise(FusedColumnLinear(8, {"gate_proj": 12, "up_proj": 12}, True, tp))
        row = randomise(RowLinear(12, 8, False, tp))
        piece = torch.randn(5, 3, 8, requires_grad=True)  # of 10 positions of 3 sequences
        with Copies() as copies:
            gate, up = column(piece)
            out = row(F.silu(gate) * up)
            out.backward(torch.ones_like(out))
        assert gate.shape == up.shape == (3, 10, 6) and out.shape == piece.grad.shape == (5, 3, 8)
        assert copies.elements == 0
    finally:
        dist.destroy_process_group()
