"""What processes take of their hosts, against the code that takes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.checkpoint.stage import CHUNK, chunk_sizes
from llmkit.config.load import load
from llmkit.device import AUTO_WORKERS
from llmkit.estimate import host_memory
from llmkit.estimate.host_memory import CHECKPOINT_COPY, host_terms, page_locked
from llmkit.plan import DeviceFacts, Known, Plan, resolve_plan
from llmkit.plan.memory import memory
from tests.program import make_project

GIB = 2**30
FULL = "parallel.activation_checkpointing=full"


@pytest.fixture
def plan(tmp_path: Any) -> Any:
    def make(*overrides: str, world: int = 2) -> Plan:
        sizes = ["model.hidden_size=768", "model.num_attention_heads=12", "train.precision=bf16"]
        sizes.append("checkpoint.background=true")
        loaded = load(make_project(tmp_path), [*sizes, *overrides])
        return resolve_plan(loaded, Known(world, None, 257, True, DeviceFacts()))

    return make


def terms(plan: Plan, on_cpu: bool = False) -> dict[str, float]:
    return {term.name: term.value for term in host_terms(plan, memory(plan), on_cpu)}


def test_the_constants_are_those_of_the_code() -> None:
    assert (host_memory.CHUNK, host_memory.MOST_WORKERS) == (CHUNK, AUTO_WORKERS)


@pytest.mark.parametrize("size", [1, 2**20, 2**20 + 1, GIB - 64, GIB, 3 * GIB + 64, 5 * GIB - 64])
def test_page_locked_memory_is_what_a_copy_takes(size: int) -> None:
    """A save takes chunks for pieces of any sizes: here of 64 bytes and more, which fill them."""
    pieces = [2**26] * (size // 2**26) + ([size % 2**26] if size % 2**26 else [])
    assert page_locked([CHUNK] * (size // CHUNK) + [size % CHUNK]) == sum(chunk_sizes(pieces, pinned=True))


def test_workers_count_where_a_source_is_live(plan: Any) -> None:
    assert "data workers" not in terms(plan("data.workers=3"))
    live = "data.sources=[{type: text, path: x, live: true}]"
    assert terms(plan(live, "data.workers=3"))["data workers"] == 3 * int(0.3 * GIB)
    assert terms(plan(live))["data workers"] == AUTO_WORKERS * int(0.3 * GIB)
    assert "data workers" not in terms(plan(live, "data.workers=0"))


def test_processes_and_copies_on_a_cpu_take_less(plan: Any) -> None:
    cpu, gpu = terms(plan(), on_cpu=True), terms(plan())
    assert cpu["process"] < gpu["process"] and cpu[CHECKPOINT_COPY] <= gpu[CHECKPOINT_COPY]
    assert set(cpu) == set(gpu) == {"process", CHECKPOINT_COPY}
    assert set(terms(plan("checkpoint.background=false"))) == {"process"}


def test_offloading_locks_pages_in_powers_of_two(plan: Any) -> None:
    for stage in (1, 2, 3):
        one = plan("parallel.offload=cpu", f"parallel.zero_stage={stage}", "parallel.engine=deepspeed")
        found, state = terms(one), one.state
        if stage == 3:
            sizes = [state.gradients, state.gradients, state.weights]
            assert found["sums of gradients"] == state.gradients
        else:
            largest = max(tensor.shape[0] * tensor.shape[1] for tensor in one.model.tensors if tensor.linear)
            assert found["updated weights"] == state.masters / 2
            sizes = [state.masters, state.gradients, state.masters // 2, int(found["gradient on its way"])]
            assert found["gradient on its way"] >= 2 * largest
        assert found["rounding of page-locked memory"] == sum(
            2 ** (size - 1).bit_length() - size for size in sizes
        )


def test_each_input_of_a_block_takes_a_power_of_two(plan: Any) -> None:
    one = plan(FULL, "train.micro_batch_size=3", "train.global_batch_size=6")
    layout = replace(one.layout, offload_activations=True)
    found = terms(replace(one, layout=layout))["activations"]
    tokens = 3 * one.config.data.row_length
    size = tokens * 768 * 2  # in bf16
    assert size & (size - 1) and found == one.model.num_hidden_layers * 2 ** size.bit_length()
