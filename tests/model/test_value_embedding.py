"""Value embeddings: the gate of each head, and their pieces on tensor-parallel ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.model.value_embedding import ValueEmbedding
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import LLAMA_STYLE, randomise

SHAPE = replace(LLAMA_STYLE, value_embeddings=True)


def test_each_head_has_a_gate_of_its_own():
    layer = randomise(ValueEmbedding(SHAPE, TensorParallel()))
    tokens, x = torch.tensor([[3, 100, 3]]), torch.randn(1, 3, SHAPE.hidden_size)
    found = layer(tokens, x).unflatten(-1, (2, SHAPE.head_dim))
    assert found.shape == (1, 3, 2, 10)
    for head in range(2):
        gate = 2 / (1 + torch.exp(-(x[0, :, :32] * layer.gate[head]).sum(-1)))
        wanted = gate[:, None] * layer.weight[tokens[0], 10 * head : 10 * head + 10]
        torch.testing.assert_close(found[0, :, head], wanted)


@pytest.mark.parametrize(("ranks", "heads"), [(2, [(0, 1), (1, 2)]), (4, [(0, 1), (0, 1), (1, 2), (1, 2)])])
def test_ranks_share_the_columns_as_they_share_the_values(ranks, heads):
    shape = replace(SHAPE, head_dim=12)
    parts = [ValueEmbedding(shape, TensorParallel(rank, ranks)) for rank in range(ranks)]
    assert [each.heads for each in parts] == heads
    width = 24 // ranks
    slices = [each.parameter_slices("v") for each in parts]
    assert [each["weight"][0].box[1] for each in slices] == [
        (rank * width, (rank + 1) * width) for rank in range(ranks)
    ]
    assert all(each.weight.shape == (101, width) for each in parts)
    assert all(each["gate"][0].box == ((0, 2), (0, 32)) for each in slices)
