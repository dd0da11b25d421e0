"""Compiled training: graphs hold together, losses are the uncompiled model's, memory is as planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.contenders import build
from benchmarks.workloads import make_batches, make_workload
from llmkit.batch import Rows
from llmkit.device import device_facts
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.kernels.compiler import graph_breaks
from llmkit.parallel.mesh import Mesh
from llmkit.plan import plan_for_shape
from llmkit.plan.memory import memory
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

SHAPES = {
    "gpt2": replace(GPT2_STYLE, head_dim=16, hidden_size=64),
    "llama": replace(LLAMA_STYLE, head_dim=16),
}
"""Head dims that GPU kernels take."""


def engine(name: str, device: torch.device, precision: str, compiled: bool, masked: bool) -> Engine:
    """With the forms that the plan chooses. On a CPU no code is generated, only the graphs are made."""
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 32, "document_masks": masked},
        "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "precision": precision},
        "kernels": {"compile": compiled},
    }
    plan = plan_for_shape(SHAPES[name], settings, device_facts(device))
    made = build_engine(
        replace(plan, kernels=replace(plan.kernels, compiled=False)), Mesh(), device=device, note=pytest.fail
    )
    if compiled:
        made.model.compile_parts(pytest.fail, "inductor" if device.type == "cuda" else "aot_eager")
    return made


@pytest.mark.parametrize(
    ("precision", "masked"),
    [
        pytest.param("fp32", False, id="fp32"),
        pytest.param("bf16", True, id="bf16-documents"),
        pytest.param("bf16", False, id="bf16", marks=pytest.mark.exhaustive),
        pytest.param("fp32", True, id="fp32-documents", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("name", SHAPES)
def test_graphs_hold_together_and_are_made_once(device, name, precision, masked):
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(97, (2, 33), generator=generator, dtype=torch.int32) for _ in range(4)]
    batches = [Rows.of(each, None, 5 if masked else None).to(device) for each in tokens]
    losses = {}
    graphs = []
    for compiled in (False, True):
        made = engine(name, device, precision, compiled, masked)
        losses[compiled] = []
        for batch in batches:
            losses[compiled].append(made.train_step([batch, batch], 128).loss_sum.item() / 128)
            graphs.append(counters["stats"]["unique_graphs"])
        for _ in range(2):
            made.evaluate([batches[0]])
            graphs.append(counters["stats"]["unique_graphs"])
    uncompiled, steps, evaluations = graphs[:6], graphs[6:10], graphs[10:]
    assert uncompiled == [0] * 6
    assert min(steps) == max(steps) > 0, "a later step compiled again"
    assert evaluations[0] <= steps[-1] + 1, "more than a head without gradients"
    assert evaluations[1] == evaluations[0], "a later evaluation compiled again"
    assert graph_breaks() == {}
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    assert losses[True] == pytest.approx(losses[False], rel=tolerance)


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [True, False])
def test_the_micro_batch_that_is_chosen_fits_and_uses_the_memory(compiled):
    device = torch.device("cuda")
    changes = {
        "train": {"micro_batch_size": "auto", "global_batch_size": 256},
        "kernels": {"compile": compiled},
        "model": {"num_hidden_layers": 8},
    }
    work = make_workload("llama-1b", device, changes)
    facts = device_facts(device, compiled=compiled)
    settings = {
        "data": work.config.data.model_dump(),
        "train": work.config.train.model_dump() | {"precision": "bf16"},
        "kernels": {"compile": compiled},
    }
    plan = plan_for_shape(work.shape, settings, facts)
    chosen, needs = plan.micro_batch_size, memory(plan)
    sized = {**changes, "train": {"micro_batch_size": chosen, "global_batch_size": 2 * chosen}}
    work = make_workload("llama-1b", device, sized)
    step, batches = build("llmkit", work, "bf16", device, print), make_batches(work, device)
    for batch in batches[:2]:
        step(batch)
    peak = torch.cuda.max_memory_allocated()
    assert peak < facts.free_bytes, f"micro-batches of {chosen}"
    # Expected: within a tenth of the estimate, which is one from above.
    assert needs.least <= peak <= 1.1 * needs.on_device, f"{peak} bytes, by estimate {needs}"
    assert chosen == 256 or peak > 0.4 * facts.free_bytes, f"micro-batches of {chosen} need {peak} bytes"
