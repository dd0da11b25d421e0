"""Speeds of the CPU as it is; those of GPUs as tests/gpu measures them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from llmkit.doctor import speed
from llmkit.doctor.speed import copy_findings, cpu_findings, product_rate, products_finding


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


class Event:
    """As torch.cuda.Event; between any two lie 2 ms."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 2.0


def test_rates_of_gpus_are_what_events_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors that have no memory in place of those of two GPUs."""
    empty = torch.empty

    def no_memory(*sizes: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*sizes, **options | ({"device": "meta"} if pin_memory else {}))

    monkeypatch.setattr(torch, "empty", no_memory)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    devices = [torch.device("meta", index) for index in range(2)]
    assert product_rate(devices[0], 1024, 0.0) == pytest.approx(2 * 1024**3 / 0.0005)
    found = {each.name: each.numbers for each in copy_findings(devices)}
    once = speed.COPIED / 0.002
    both = {"H100 #0": once, "H100 #1": once}
    assert found["copy to GPU"] == found["copy from GPU"] == pytest.approx(both)
    assert found["copy in GPU"] == pytest.approx({name: 2 * rate for name, rate in both.items()})
    assert found["copy between GPUs"] == pytest.approx({"H100 #0 to 1": once, "H100 #1 to 0": once})
    assert "copy between GPUs" not in {each.name for each in copy_findings(devices[:1])}
