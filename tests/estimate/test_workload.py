"""The workload of a plan of ours."""

from __future__ import annotations

from llmkit.estimate.workload import Adapter, Workload, workload_of
from llmkit.plan import Plan
from tests.estimate.test_step_time import LLAMA_8B, plan_of


def workload(parallel: dict[str, object], **train: object) -> Workload:
    plan = plan_of(LLAMA_8B, {"global_batch_size": 64, "micro_batch_size": 2, **train}, parallel)
    work = workload_of(plan)
    assert work is not None
    return work


def test_sizes_are_those_of_the_plan() -> None:
    work = workload({"world_size": 16, "tensor_parallel_size": 2, "sequence_parallel": True})
    assert (work.data_parallel, work.micro_batches, work.tokens) == (8, 4, 2 * 8192)
    assert (work.rows, work.length, work.tensor, work.sequence_parallel) == (64, 8192, 2, True)
    assert work.parameters == LLAMA_8B.num_parameters / 2
    assert (work.linear, work.value_bytes, work.exchange.gradient_bytes) == ("bf16", 2, 4)
    assert work.update is not None
    assert (work.update.elements, work.update.moments, work.update.muon) == (LLAMA_8B.num_parameters, 2.0, ())


def test_a_pair_is_two_sequences() -> None:
    source = {"type": "jsonl", "path": "x", "record": "preference"}
    data = {"sources": [source], "sequence_length": 512, "tokenizer": {"type": "bytes"}}
    plan = plan_of(
        LLAMA_8B, {"global_batch_size": 8, "micro_batch_size": 2, "objective": "dpo", "init_from": "weights"},
        {"world_size": 2}, data=data,
    )  # fmt: skip
    work = workload_of(plan)
    assert work is not None
    assert (work.length, work.rows, work.micro_batch, work.micro_batches) == (512, 16, 4, 2)
    assert work.tokens * work.micro_batches * 2 == plan.tokens_per_step


def test_what_each_engine_sends() -> None:
    native = [
        workload({"world_size": 8, "engine": "native", "zero_stage": stage}).exchange for stage in (0, 1, 2)
    ]
    assert [each.all_reduce for each in native] == [True, False, False]
    assert [each.each_micro_batch for each in native] == [False, False, True]
    assert [each.beside for each in native] == [1.0] * 3
    stages = (1, 2, 3)
    other = [workload({"world_size": 8, "engine": "deepspeed", "zero_stage": s}).exchange for s in stages]
    assert [each.all_reduce for each in other] == [True, True, False]
    assert [each.beside for each in other] == [0.0, 0.5, 1.0]
    moved = [workload({"world_size": 8, "engine": "deepspeed", "zero_stage": s}).accumulates for s in stages]
    assert moved == [18.0, 18.0, 24.0]
    assert workload({"world_size": 8, "engine": "native"}).accumulates == 10.0
    sliced = workload({"world_size": 8, "engine": "native", "zero_stage": 2})
    assert sliced.accumulates == 2.0 + 8.0 + 12.0 / 8
    hooks = [workload({"world_size": 8, "engine": "deepspeed", "zero_stage": s}).hooks for s in stages]
    assert 0.0 == hooks[0] < hooks[1] < hooks[2]
    assert workload({"world_size": 8, "engine": "native"}).hooks == 0.0
    assert [each.each_micro_batch for each in other] == [False, True, True]


def test_adapters_leave_most_weights_without_a_gradient() -> None:
    lora = {"rank": 8, "targets": ["q_proj", "down_proj"]}
    q, down = (4096, 4096), (4096, 14336)
    work = workload({"world_size": 8}, init_from="weights", lora=lora)
    assert set(work.adapters) == {Adapter(*q, 8, 32), Adapter(*down, 8, 32)}
    assert work.trained == 32 * 8 * (sum(q) + sum(down))
    assert work.sharded_bytes == 2 * (LLAMA_8B.num_parameters + work.trained)
    sharded = workload({"world_size": 8, "tensor_parallel_size": 4}, init_from="weights", lora=lora)
    assert set(sharded.adapters) == {Adapter(1024, 4096, 8, 32), Adapter(4096, 3584, 8, 32)}
    # Of a column-parallel layer every rank has all of A, of a row-parallel one all of B.
    assert sharded.trained == 32 * 8 * (1024 + 4096 + 4096 + 3584)


def test_weights_in_few_bits_are_not_gathered() -> None:
    lora = {"rank": 8, "targets": ["q_proj"], "quantize_base": "int8"}
    work = workload({"world_size": 8, "zero_stage": 3}, init_from="weights", lora=lora)
    linear = sum(a * b for t in LLAMA_8B.tensors if t.linear for a, b in [t.shape])
    assert work.sharded_bytes == 2 * (LLAMA_8B.num_parameters - linear + work.trained)


def test_weights_have_the_bytes_of_the_precision() -> None:
    for precision, each in (("bf16", 2), ("fp32", 4)):
        work = workload({"world_size": 8}, precision=precision)
        assert (work.weight_bytes, work.sharded_bytes) == (each, each * LLAMA_8B.num_parameters)


def test_muon_has_the_matrices_of_the_blocks() -> None:
    plan: Plan = plan_of(LLAMA_8B, {"global_batch_size": 64}, {"world_size": 8}, optimizer={"name": "muon"})
    work = workload_of(plan)
    assert work is not None
    assert work.update is not None
    assert len(work.update.muon) == 7 * 32
    assert 1.0 < work.update.moments < 1.2
