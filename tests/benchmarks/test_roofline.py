"""The predictions: what they say of shapes whose figures are known, and that more work takes longer."""

from __future__ import annotations

import pytest
import torch

from benchmarks.on_gpu.roofline import (
    H100,
    TARGETS,
    causal_flops,
    matrices,
    memory,
    product_seconds,
    rates_of,
    step_seconds,
    table,
)
from benchmarks.workloads import ROOT, make_workload
from llmkit.monitor.flops import train_flops_per_token
from llmkit.monitor.peaks import published_peak

CPU = torch.device("cpu")
PEAK = 989.4e12


def test_a_large_product_runs_at_the_measured_rate() -> None:
    rate = 2 * 8192**3 / product_seconds(8192, 8192, 8192, H100)
    assert rate == pytest.approx(H100.products, rel=0.05)
    assert product_seconds(16, 16, 8192, H100) > 2 * 16 * 16 * 8192 / H100.products


@pytest.mark.parametrize(
    ("name", "length", "low", "high"),
    [
        ("124m", 1024, 0.44, 0.50),
        ("355m", 1024, 0.50, 0.57),
        ("1558m", 1024, 0.55, 0.62),
        ("llama-1b", 2048, 0.62, 0.69),
        ("llama-3b", 4096, 0.67, 0.74),
    ],
)
def test_the_bound_lies_above_the_target_and_below_what_no_gpu_reaches(
    name: str, length: int, low: float, high: float
) -> None:
    shape = make_workload(name, CPU).shape
    seconds = step_seconds(shape, length, 32_768 if "b" not in name else 16_384, 524_288, H100)
    utilization = train_flops_per_token(shape, length) * 524_288 / seconds / PEAK
    assert low < utilization < high
    assert utilization > TARGETS[name]


def test_more_tokens_a_micro_batch_and_longer_rows_cost_what_they_must() -> None:
    shape = make_workload("llama-1b", CPU).shape
    small, large = (step_seconds(shape, 2048, tokens, 524_288, H100) for tokens in (2048, 16_384))
    assert large < small
    assert step_seconds(shape, 8192, 16_384, 524_288, H100) > 1.1 * large
    assert memory(shape, 4096) < memory(shape, 8192) < memory(shape, 16_384)
    assert causal_flops(shape, 2048) < train_flops_per_token(shape, 2048)


def test_the_matrices_are_those_of_the_model() -> None:
    for name in ("124m", "llama-1b", "toy"):
        shape = make_workload(name, CPU).shape
        weights = sum(n * k for n, k in matrices(shape))
        assert weights * shape.num_hidden_layers == pytest.approx(shape.num_block_parameters, rel=0.02)


def test_the_documented_predictions_are_these() -> None:
    documented = (ROOT / "docs" / "benchmarks.md").read_text()
    for line in table("NVIDIA H100 80GB HBM3").splitlines()[2:]:
        assert line in documented
    with pytest.raises(SystemExit, match="nothing is predicted for 'NVIDIA GeForce RTX 3060'"):
        table("NVIDIA GeForce RTX 3060")


def test_gpus_that_nothing_is_known_of_get_no_prediction() -> None:
    assert rates_of("NVIDIA H100 80GB HBM3") == H100
    assert rates_of("NVIDIA H200") is not None
    assert rates_of("NVIDIA A100-SXM4-80GB") != rates_of("NVIDIA A100-SXM4-40GB")
    assert rates_of("NVIDIA GeForce RTX 3060") is None
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB"):
        assert published_peak(name) is not None
