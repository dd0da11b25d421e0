"""A complete model beside one whose activations are pieces: its parameters, and what is state beside them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from llmkit.device import device_facts
from llmkit.engine.buffers import load_buffers
from llmkit.engine.complete import complete_model
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from llmkit.parity.run import make_plan
from llmkit.parity.subjects import MODELS, RandomWeights, global_batch


def test_biases_of_experts_are_those_of_the_engine() -> None:
    of, model = MODELS["experts"], GPT(MODELS["experts"]).eval()
    load_buffers(model, RandomWeights(of))
    engine: Any = SimpleNamespace(model=model)
    plan = make_plan(of, {"world_size": 1}, 2, device_facts(torch.device("cpu")), "fp32")
    in_pieces = replace(plan, layout=replace(plan.layout, sequence_parallel=True))
    other = complete_model(engine, in_pieces, Mesh())
    assert other is not model and not other.training
    biases, found = model.full_buffers(), other.full_buffers()
    assert len(found) == 2 and all(each.abs().max() > 0 for each in found.values())
    assert all(torch.equal(found[name], bias) for name, bias in biases.items())
    batch = global_batch(of, 0, masked=True)
    torch.testing.assert_close(other(batch).nats, model(batch).nats)  # of which biases decide the experts
