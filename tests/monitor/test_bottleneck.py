"""Verdicts on traces that are made to have one."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.monitor.bottleneck import (
    collective_rate,
    find_bottleneck,
    kind_of,
    length,
    merged,
    own_times,
    without,
)


def kernel(name: str, begin: float, dur: float, cat: str = "kernel", **arguments: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": dur, "tid": 7, "args": arguments}


def op(name: str, begin: float, dur: float, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": begin, "dur": dur, "pid": 1, "tid": thread}


GEMM, NORM = "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "triton_red_fused__to_copy_mean_mul_rsqrt_3"
REDUCE = "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def test_products_on_a_gpu() -> None:
    events = [
        kernel(GEMM, 0, 600), kernel("flash_fwd_kernel", 600, 100), kernel(NORM, 700, 200),
        kernel("Memcpy DtoD", 900, 50, cat="gpu_memcpy"), op("aten::mm", 0, 5),
        {"ph": "i", "name": "a mark", "ts": 3},
    ]  # fmt: skip
    found = find_bottleneck(events, seconds=1e-3, waiting=2e-5, steps=1, flops=7e8)
    assert found.bound == "compute" and found.device
    wanted = {"compute": 0.7, "memory": 0.25, "communication": 0.0, "data": 0.02, "launch": 0.03}
    assert found.shares == pytest.approx(wanted)
    assert found.matrix_flops == pytest.approx(1e12)
    assert found.line().startswith(
        "compute-bound: 70 % in matrix products and attention (1 TFLOP/s there), 25 % in other kernels, "
        "which move memory, 3 % between kernels"
    )


def test_kernels_that_move_memory() -> None:
    events = [kernel(GEMM, 0, 300), kernel(NORM, 300, 500), kernel("multi_tensor_apply_kernel", 800, 200)]
    assert find_bottleneck(events, 1e-3, 0.0, 1).bound == "memory"


def test_collectives_count_where_nothing_runs_beside_them() -> None:
    events = [kernel(GEMM, 0, 400), kernel(REDUCE, 100, 800)]
    found = find_bottleneck(events, 1e-3, 0.0, 1)
    assert found.bound == "communication"
    assert found.shares["communication"] == pytest.approx(0.5)
    hidden = [kernel(GEMM, 0, 950), kernel(REDUCE, 100, 800)]
    assert find_bottleneck(hidden, 1e-3, 0.0, 1).shares["communication"] == 0.0


def test_the_rate_of_collectives_that_tell_their_sizes() -> None:
    sized = {"In msg nelems": 1_000_000, "dtype": "BFloat16"}
    events = [kernel(REDUCE, 0, 500, **sized), kernel(REDUCE, 500, 500, **sized)]
    assert collective_rate(events) == pytest.approx(4e9)
    assert collective_rate([*events, kernel(REDUCE, 1000, 10)]) is None
    assert "(4 GB/s)" in find_bottleneck(events, 1e-3, 0.0, 1).line()


def test_a_gpu_that_waits_for_the_host() -> None:
    gaps = [kernel(GEMM, 100.0 * i, 20) for i in range(10)]
    assert find_bottleneck(gaps, 1e-3, 0.0, 1).bound == "launch"
    waits = find_bottleneck(gaps, 1e-3, 7e-4, 1)
    assert waits.bound == "data" and waits.shares["data"] == pytest.approx(0.7)
    assert "launching" in waits.line()


def test_waiting_for_data_costs_nothing_while_the_gpu_is_busy() -> None:
    found = find_bottleneck([kernel(GEMM, 0, 1000)], 1e-3, 8e-4, 1)
    assert found.bound == "compute" and found.shares["data"] == 0.0


def test_streams_that_overlap_share_their_time() -> None:
    found = find_bottleneck([kernel(GEMM, 0, 1000), kernel(NORM, 0, 1000)], 1e-3, 0.0, 1)
    assert found.shares["compute"] == pytest.approx(0.5) and sum(found.shares.values()) == pytest.approx(1.0)


def test_operators_of_a_cpu_count_without_what_they_call() -> None:
    events = [
        op("aten::linear", 0, 500), op("aten::addmm", 20, 470), op("aten::silu", 500, 300),
        op("aten::mul", 800, 4), op("aten::mm", 0, 300, thread=2),
    ]  # fmt: skip
    found = find_bottleneck(events, 1e-3, 1e-4, 1)
    assert not found.device and found.bound == "compute"
    wanted = {"compute": 0.5, "memory": 0.3, "communication": 0.0, "data": 0.1, "launch": 0.1}
    assert found.shares == pytest.approx(wanted)
    assert [(each.name, each.microseconds) for each in found.operators[:2]] == [
        ("aten::addmm", 470), ("aten::silu", 300),
    ]  # fmt: skip


def test_on_a_cpu_gloo_waits_beside_the_main_thread_and_functional_collectives_in_it() -> None:
    computes = op("aten::addmm", 0, 400)
    gloo = op("gloo:all_reduce", 300, 600, thread=9) | {"cat": "user_annotation"}
    found = find_bottleneck([computes, gloo], 1e-3, 0.4e-3, 1)
    assert found.shares == pytest.approx(
        {"compute": 0.4, "memory": 0.0, "communication": 0.5, "data": 0.1, "launch": 0.0}
    )
    within = [op("_ReduceFromGroup", 400, 500), op("_c10d_functional::wait_tensor", 450, 400)]
    found = find_bottleneck([computes, *within], 1e-3, 0.0, 1)
    assert found.shares == pytest.approx(
        {"compute": 0.4, "memory": 0.1, "communication": 0.4, "data": 0.0, "launch": 0.1}
    )


def test_evaluations_and_saves_between_steps_are_left_out() -> None:
    mark = op("evaluate", 400, 500) | {"cat": "user_annotation"}
    events = [kernel(GEMM, 0, 300), mark, kernel(NORM, 420, 450)]
    found = find_bottleneck(events, 1e-3, 0.0, 1)
    assert found.shares["compute"] == pytest.approx(0.6) and found.shares["memory"] == 0.0


def test_a_trace_without_events_has_a_verdict_too() -> None:
    assert find_bottleneck([], 1e-3, 9e-4, 1).bound == "data"
    assert find_bottleneck([], 0.0, 0.0, 0).step_seconds == 0.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (GEMM, "matrix"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix"),
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90>>", "matrix"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_nn", "matrix"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "matrix"),
        ("aten::mm", "matrix"),
        ("aten::mul", "other"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "other"),
        (NORM, "other"),
        (REDUCE, "collective"),
        ("gloo:all_reduce", "collective"),
        ("c10d::allreduce_", "collective"),
    ],
)
def test_kinds_follow_from_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_unions_and_own_times() -> None:
    assert merged([(5, 7), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 7)]
    assert without([(0, 4), (5, 9)], [(1, 2), (3, 6), (8, 12)]) == [(0, 1), (2, 3), (6, 8)]
    assert length([(0, 4), (5, 7)]) == 6
    events = [op("inner", 2, 3), op("outer", 0, 10), op("later", 10, 1), op("innermost", 3, 1)]
    assert [own for _, own in own_times(events)] == [2, 7, 1, 1]
