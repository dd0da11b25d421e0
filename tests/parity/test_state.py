"""State that is put together again, and weights that have drifted apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from llmkit.engine.base import Engine
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.run import make_engine
from llmkit.parity.state import drifted, gather_state
from llmkit.parity.subjects import MODELS, RandomWeights
from tests.ranks import run_ranks

SHAPE = MODELS["odd"]


def engine_on(mesh: Mesh, **parallel: Any) -> Engine:
    settings = {"world_size": mesh.world_size, **parallel}
    engine = make_engine(SHAPE, settings, mesh, torch.device("cpu"), "fp32", 1)
    engine.write_pieces(RandomWeights(SHAPE), optimizer_steps=0)
    return engine


def test_pieces_that_are_not_the_whole_are_refused():
    engine = engine_on(Mesh())
    source = RandomWeights(SHAPE)
    state = gather_state(engine, Mesh(), ["master"])
    assert all(torch.equal(tensor, source.read(name, "master")) for name, tensor in state["master"].items())
    pieces = [piece for piece in engine.read_pieces() if piece.kind == "master"]
    first = pieces[0]
    half = len(first.data) // 2
    cut = replace(first, range=(first.range[0], first.range[0] + half), data=first.data[:half])
    for wrong in ([cut, *pieces[1:]], [*pieces, first]):
        with patch.object(engine, "read_pieces", lambda wrong=wrong: wrong), pytest.raises(ValueError):
            gather_state(engine, Mesh(), ["master"])


def cases() -> dict[str, Any]:
    """Of two ranks: names of weights that drifted, before and after one rank changed two of them."""
    found: dict[str, Any] = {}
    for name, parallel in {"copies": {}, "slices": {"tensor_parallel_size": 2}}.items():
        mesh = make_mesh(parallel.get("tensor_parallel_size", 1))
        engine = engine_on(mesh, **parallel)
        source = RandomWeights(SHAPE)
        state = gather_state(engine, mesh, ["master"])["master"]
        whole = all(torch.equal(tensor, source.read(part, "master")) for part, tensor in state.items())
        before = drifted(engine.model, mesh)
        with torch.no_grad():
            weights = dict(engine.model.named_parameters())
            for each in ("norm.weight", "blocks.0.attention.o_proj.weight"):
                weights[each][-1] += dist.get_rank()
        found[name] = {"whole": whole, "before": before, "after": drifted(engine.model, mesh)}
        engine.close()
    return found


def test_drifted_weights_are_those_that_ranks_should_hold_alike():
    for found in run_ranks(2, "tests.parity.test_state:cases"):
        assert all(each["whole"] and each["before"] == [] for each in found.values())
        assert sorted(found["copies"]["after"]) == ["blocks.0.attention.o_proj.weight", "norm.weight"]
        assert found["slices"]["after"] == ["norm.weight"], "each rank has a slice of its own of the other"
