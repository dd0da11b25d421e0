"""Full tensors that are state but no parameters: in checkpoints once, read by all ranks."""

from __future__ import annotations

import torch

from llmkit.engine.buffers import buffer_pieces, load_buffers
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from llmkit.parity.subjects import MODELS, RandomWeights


def test_they_are_pieces_of_checkpoints_and_come_back() -> None:
    of = MODELS["experts"]
    model, source = GPT(of, seed=None), RandomWeights(of)
    load_buffers(model, source)
    pieces = {piece.name: piece for piece in buffer_pieces(model, Mesh())}
    assert list(pieces) == ["blocks.1.mlp.router.bias", "blocks.2.mlp.router.bias"]
    for name, piece in pieces.items():
        assert (piece.kind, piece.shape) == ("master", (5,))
        assert torch.equal(piece.data, source.read(name, "master"))
    model.adapted = True  # then they are those of the base, and in no checkpoint
    assert list(buffer_pieces(model, Mesh())) == []


def test_those_that_are_not_stored_begin_as_in_a_new_model() -> None:
    of = MODELS["experts"]
    model, source = GPT(of, seed=None), RandomWeights(of)
    del source.tensors["blocks.2.mlp.router.bias"]
    for buffer in model.full_buffers().values():
        buffer.fill_(7.0)
    load_buffers(model, source)
    assert model.full_buffers()["blocks.2.mlp.router.bias"].tolist() == [0.0] * 5
    assert 7.0 not in model.full_buffers()["blocks.1.mlp.router.bias"].tolist()
