"""Dropout, alike on ranks that hold the same activations and different where they are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.config.shape import ModelShape
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.randomness import keyed_bits, own_stream

Key: TypeAlias = Tensor | None
"""One int64 that a tensor-parallel group agrees on, or None where PyTorch's generators will do."""


def dropout(x: Tensor, probability: float, training: bool, key: Key = None) -> Tensor:
    """PyTorch's dropout; with a key, one whose choice depends on the key alone."""
    if key is None:
        return F.dropout(x, probability, training)
    index = torch.arange(x.numel(), device=x.device).view_as(x)
    dropped = keyed_bits(index, key) < round(probability * 2**24)
    return (x / (1.0 - probability)).masked_fill(dropped, 0.0)


@contextmanager
def group_dropout(
    shape: ModelShape, tensor: TensorParallel, training: bool, device: torch.device
) -> Iterator[Sequence[Key]]:
    """Inside, the ranks of a tensor-parallel group draw different numbers, if the model needs that.

    Yields the key of each dropout between cut layers: after the embedding, and two in each block.
    """
    size = 2 * shape.num_hidden_layers + 1
    cut_hidden = tensor.sequence_parallel and shape.hidden_dropout > 0.0
    if tensor.size == 1 or not training or not (shape.attention_dropout > 0.0 or cut_hidden):
        yield [None] * size
        return
    with own_stream(tensor.rank, device) as agreed:
        if tensor.sequence_parallel or shape.hidden_dropout == 0.0:
            yield [None] * size
        else:
            keys = torch.randint(1 << 62, (size,), generator=torch.Generator().manual_seed(agreed))
            yield keys.to(device, non_blocking=True).unbind()
