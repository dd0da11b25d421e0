"""Value embeddings, and their pieces on tensor-parallel ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.model.value_embedding import ValueEmbedding
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import LLAMA_STYLE, randomise

SHAPE = replace(LLAMA_STYLE, value_embeddings=True)


def test_each_head_has_its_part_of_a_row_times_its_gate():
    layer = randomise(ValueEmbedding(SHAPE, TensorParallel()))
    tokens, x = torch.tensor([[3, 100, 3]]), torch.randn(1, 3, SHAPE.hidden_size)
    found, gate = layer(tokens, x).unflatten(-1, (2, SHAPE.head_dim)), layer.gate(x)
    assert found.shape == (1, 3, 2, 10)
    for head in range(2):
        wanted = gate[0, :, head, None] * layer.weight[tokens[0], 10 * head : 10 * head + 10]
        torch.testing.assert_close(found[0, :, head], wanted)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_columns_as_they_share_the_values(ranks):
    shape, width = replace(SHAPE, head_dim=12), 24 // ranks
    for rank in range(ranks):
        layer = ValueEmbedding(shape, TensorParallel(rank, ranks))
        (part,) = layer.parameter_slices("v")["weight"]
        assert part.box == ((0, 101), (rank * width, (rank + 1) * width))
        assert layer.weight.shape == (101, width)
