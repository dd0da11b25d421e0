"""Keys of dropout: the same on ranks that hold the same activations, others where these are sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from llmkit.config.shape import ModelShape
from llmkit.kernels.dropout import Key
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.randomness import own_stream


class DropoutKeys(NamedTuple):
    """A key for each dropout whose activations all tensor-parallel ranks hold: attention[i] is of block i."""

    embedding: Key
    attention: Sequence[Key]
    mlp: Sequence[Key]


@contextmanager
def group_dropout(
    shape: ModelShape, tp: TensorParallel, training: bool, device: torch.device
) -> Iterator[DropoutKeys]:
    """Inside, tensor-parallel ranks draw different numbers from PyTorch's generators, if the model needs it.

    Yields the keys by which they nevertheless drop the same of the activations that all of them hold.
    """
    layers = shape.num_hidden_layers
    no_keys = DropoutKeys(None, [None] * layers, [None] * layers)
    sharded_hidden = tp.sequence_parallel and shape.hidden_dropout > 0.0
    if tp.size == 1 or not training or not (shape.attention_dropout > 0.0 or sharded_hidden):
        yield no_keys
        return
    with own_stream(tp.rank, device) as agreed:
        if tp.sequence_parallel or shape.hidden_dropout == 0.0:
            yield no_keys
        else:
            generator = torch.Generator().manual_seed(agreed)
            drawn = torch.randint(1 << 62, (2 * layers + 1,), generator=generator)
            keys = drawn.to(device, non_blocking=True).unbind()
            yield DropoutKeys(keys[0], keys[1::2], keys[2::2])
