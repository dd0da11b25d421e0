"""What is counted of an engine's memory: all that lasts, each storage once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.engine.native import NativeEngine
from llmkit.parallel.mesh import Mesh
from llmkit.parity.cases import Case
from llmkit.parity.memory import allocated, memory_differences, watched_gradients
from llmkit.parity.run import make_engine, planned_memory, train
from llmkit.parity.subjects import MODELS, RandomWeights

CPU = torch.device("cpu")
PLAIN = Case("gpt2", 0, 1, 1, False, 1, "none", False, "fp32", "none")


@pytest.mark.parametrize("case", [PLAIN, replace(PLAIN, precision="bf16", optimizer="muon")], ids=str)
def test_an_engine_has_the_bytes_of_its_plan_and_others_are_named(case: Case) -> None:
    shape = MODELS[case.model]
    engine = make_engine(shape, case.parallel, Mesh(), CPU, case.precision, 1, case.optimizer)
    assert isinstance(engine, NativeEngine)
    engine.write_pieces(RandomWeights(shape), optimizer_steps=0)
    with watched_gradients(engine) as gradients:
        train(engine, shape, Mesh(), CPU, 1)
    planned, size = planned_memory(case, CPU), 4 * shape.num_parameters
    assert planned["gradients"] == size and allocated(engine, gradients) == planned
    assert memory_differences(engine, planned, gradients, [], Mesh()) == []
    state = next(iter(engine.optimizers[0].state.values()))
    kind = next(name for name in state if name != "step")
    more = state[kind].nbytes
    state[kind] = torch.cat([state[kind], state[kind]])
    moments = planned["moments"]
    first, second = memory_differences(engine, planned, gradients, [1000, 30], Mesh())
    assert first == f"rank 0: {moments + more:,} bytes of moments, planned were {moments:,}"
    assert second == "rank 0: 1,000 bytes of buckets of gradients, planned were 0"
