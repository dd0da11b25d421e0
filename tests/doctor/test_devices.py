"""What PyTorch has for devices; GPUs by a stand-in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmkit.doctor import devices
from llmkit.doctor.devices import device_findings, gpus_finding
from llmkit.doctor.scope import Scope
from llmkit.monitor.energy import Counter, Sources
from tests.doctor.fake_nvml import fake_nvml


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
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in gpus_finding(8).advice
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "install a PyTorch with GPU code" in gpus_finding(8).advice


def test_gpus_of_nvidia_are_asked_by_their_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = [SimpleNamespace(name="NVIDIA H100 80GB HBM3", uuid=str(index)) for index in range(2)]
    asked = fake_nvml(GetTotalEccErrors=[0, 3])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices.dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(devices.importlib, "import_module", lambda name: asked)
    found = {each.name: each for each in devices._nvidia_findings(Scope("."))}
    assert found["gpu memory"].value == "GPU 1: 3 uncorrected errors since the last reset"
    assert found["libraries"].value == f"CUDA 13.0, cuDNN {torch.backends.cudnn.version()}, NCCL 2.27.5"
    properties[0].name += " MIG 1g.10gb"  # a part of a GPU
    assert "gpu memory" not in {each.name for each in devices._nvidia_findings(Scope("."))}
