"""Gates of heads against their formula, and the heads of each tensor-parallel rank."""

from __future__ import annotations

import pytest
import torch

from llmkit.model.gate import HeadGate
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import randomise


def test_each_head_has_a_gate_of_its_own():
    gate, x = randomise(HeadGate(3, 5, TensorParallel())), torch.randn(2, 7, 11)
    found = gate(x)
    assert found.shape == (2, 7, 3)
    for head in range(3):
        wanted = 2 / (1 + torch.exp(-(x[..., :5] * gate.weight[head]).sum(-1)))
        torch.testing.assert_close(found[..., head], wanted)


@pytest.mark.parametrize(
    ("ranks", "heads", "own"),
    [(2, 6, [(0, 3), (3, 6)]), (2, 2, [(0, 1), (1, 2)]), (4, 2, [(0, 1), (0, 1), (1, 2), (1, 2)])],
)
def test_ranks_have_the_gates_of_their_heads(ranks, heads, own):
    gates = [HeadGate(heads, 5, TensorParallel(rank, ranks)) for rank in range(ranks)]
    assert [each.own for each in gates] == own
    assert all(each.parameter_slices("g")["weight"][0].box == ((0, heads), (0, 5)) for each in gates)
