"""Energy and profiles: counters and kernels that only a GPU has."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from llmkit.monitor.energy import Counter, Meter, find_sources
from llmkit.monitor.profile import Recording


def busy(device: torch.device, size: int, times: int) -> None:
    """Products of two (size, size) matrices, one after the other."""
    matrix = torch.eye(size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else None)
    for _ in range(times):
        matrix = torch.mm(matrix, matrix)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def test_the_energy_of_a_busy_gpu_is_that_of_its_power(device: torch.device) -> None:
    counters = [Counter("rapl", "test", lambda: 100.0 * time.monotonic())]
    if device.type == "cuda":
        found = find_sources(device)
        if "nvml" in found.missing:
            pytest.skip(found.missing["nvml"])
        counters = [each for each in found.counters if each.kind == "nvml"]
    meter = Meter(counters)
    began = time.monotonic()
    while time.monotonic() - began < (3.0 if device.type == "cuda" else 0.05):
        busy(device, 8192 if device.type == "cuda" else 64, 20)
    meter.update()
    joules, seconds = meter.reading([counters[0].kind])
    assert seconds > 0.0
    assert 30.0 < joules / seconds < 1500.0, "watts of a GPU under load"


def test_a_profile_tells_products_from_launches(device: torch.device, tmp_path: Path) -> None:
    size = 8192 if device.type == "cuda" else 256
    busy(device, size, 2)
    recording = Recording(device)
    busy(device, size, 20)
    recording.stop()
    large = recording.write(tmp_path / "large", 0.0, 1, flops=20 * 2.0 * size**3)
    assert large.bound == "compute" and large.device == (device.type == "cuda")
    assert large.operators[0].kind == "matrix" and large.operators[0].calls == 20
    recording = Recording(device)
    busy(device, 8, 500)
    recording.stop()
    assert recording.write(tmp_path / "small", 0.0, 1, None).shares["launch"] > large.shares["launch"]
