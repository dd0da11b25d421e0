"""Speeds of the CPU as it is; those of GPUs as tests/gpu measures them."""

from __future__ import annotations

import pytest
import torch

from llmkit.doctor import speed
from llmkit.doctor.speed import cpu_findings, products_finding


def test_the_cpus_speeds_have_one_number_each() -> None:
    found = {each.name: each for each in cpu_findings()}
    assert "matrix rate of this CPU" in found["products"].value
    assert found["products"].numbers["CPU"] > 1e8 and found["memory copy"].numbers["CPU memory"] > 1e7
    assert all(each.state == "ok" for each in found.values())


def test_a_gpu_far_below_its_published_peak_is_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    devices = [torch.device("cuda", index) for index in range(2)]
    well = products_finding({devices[0]: 650e12, devices[1]: 640e12})
    assert (well.state, well.value) == ("ok", "bf16 650, 640 TFLOP/s")
    slow = products_finding({devices[0]: 650e12, devices[1]: 200e12})
    assert slow.state == "warn" and "GPU 1 reaches 0.20 of its published peak" in slow.value
    monkeypatch.setattr(speed.torch.cuda, "get_device_name", lambda device: "an unknown one")
    assert products_finding({devices[0]: 1e12}).state == "ok"
