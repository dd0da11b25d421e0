"""Keys of dropout: drawn only where ranks must agree, and the same on all of them."""

from __future__ import annotations

import torch

from llmkit.config.shape import ModelShape
from llmkit.model.dropout import DropoutKeys, group_dropout
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import GPT2_STYLE, LLAMA_STYLE


def keys_of(shape: ModelShape, size: int, sequence_parallel: bool = False, training: bool = True):
    tp = TensorParallel(rank=0, size=size, sequence_parallel=sequence_parallel)
    with group_dropout(shape, tp, training, torch.device("cpu")) as keys:
        return keys


def test_generators_are_left_alone_where_nothing_depends_on_it():
    for keys in (
        lambda: keys_of(GPT2_STYLE, 1),
        lambda: keys_of(LLAMA_STYLE, 4, sequence_parallel=True),
        lambda: keys_of(GPT2_STYLE, 2, training=False),
    ):
        torch.manual_seed(4)
        none = [None] * GPT2_STYLE.num_hidden_layers
        assert keys() == DropoutKeys(None, none, none)
        found = torch.rand(3)
        torch.manual_seed(4)
        assert torch.equal(found, torch.rand(3))
