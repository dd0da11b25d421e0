"""The published rate of exactly this GPU, or none."""

from __future__ import annotations

import pytest

from llmkit.monitor.peaks import published_peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A800-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A30", 165.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA H800", 989.4),
        ("NVIDIA H800 PCIe", 756.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA L20", 119.5),
        ("NVIDIA L40", 181.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA GeForce RTX 3090", 71.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307.4),
        ("AMD Instinct MI325X", 1307.4),
    ],
)
def test_known_gpus_have_their_dense_bf16_rate(name: str, tflops: float) -> None:
    assert published_peak(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A100X",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA RTX 6000D",
        "NVIDIA B300 SXM6 AC",
        "NVIDIA A10G",
        "Tesla V100-SXM2-16GB",
        "AMD Instinct MI300A",
    ],
)
def test_a_gpu_that_only_resembles_a_known_one_has_no_peak(name: str) -> None:
    assert published_peak(name) is None
