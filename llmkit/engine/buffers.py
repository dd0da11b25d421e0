"""Full tensors of a model that are state but no parameters (`Model.full_buffers`): every rank has all of
them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from llmkit.checkpoint.pieces import Piece
from llmkit.engine.state_shards import Source
from llmkit.model.base import Model
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import full_box


def buffer_pieces(model: Model, mesh: Mesh) -> Iterator[Piece]:
    """Their checkpoint pieces, which rank 0 alone yields; none where they are in no checkpoint
    (`Model.adapted`)."""
    if mesh.rank > 0 or model.adapted:
        return
    for name, buffer in model.full_buffers().items():
        shape = tuple(buffer.shape)
        yield Piece(name, "master", shape, full_box(shape), (0, buffer.numel()), buffer.detach().view(-1))


@torch.no_grad()
def load_buffers(model: Model, source: Source) -> None:
    """Sets them to what the source has of them; those that it has not begin at `Model.initial`."""
    buffers = model.full_buffers()
    there = frozenset(source.names("master")) if buffers else frozenset()
    for name, buffer in buffers.items():
        shape = tuple(buffer.shape)
        if name in there:
            source.read_into(buffer.view(-1), name, "master", full_box(shape), (0, buffer.numel()))
        else:
            buffer.fill_(model.initial(name, shape).mean)
