"""What PyTorch has for devices; GPUs by a stand-in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmkit.doctor import devices
from llmkit.doctor.devices import device_findings, gpus_finding
from llmkit.doctor.scope import Scope
from llmkit.monitor.energy import Counter, Sources


def test_a_machine_tells_its_devices() -> None:
    found = {each.name: each for each in device_findings(Scope("."))}
    assert set(found) >= {"gpus", "precision", "energy", "torch.compile", "backends"}
    assert "gloo" in found["backends"].value


def test_counters_of_energy_are_named_and_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter("rapl", "intel-rapl:0 package-0", lambda: 0.0)
    for sources, line in (
        (Sources([counter], {}), "rapl intel-rapl:0 package-0"),
        (Sources([], {"rapl": "for root alone"}), "none; no rapl: for root alone"),
    ):
        monkeypatch.setattr(devices, "find_sources", lambda device, sources=sources: sources)
        assert {each.name: each.value for each in device_findings(Scope("."))}["energy"] == line


def test_a_gpu_that_is_gone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert gpus_finding(7).state == gpus_finding(None).state == "ok"
    assert gpus_finding(None).value == "7 x NVIDIA H100 80GB HBM3 (80 GiB)"
    gone = gpus_finding(8)
    assert gone.state == "fail" and gone.value.startswith("7 instead of 8")
