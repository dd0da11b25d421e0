"""Devices: each with a published peak, or measured."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.monitor import hardware
from llmkit.recipes import devices
from llmkit.recipes.devices import device


@pytest.mark.parametrize("name", Hardware().devices)
def test_every_gpu_has_a_peak_and_memory(name):
    found = device(name)
    assert 1e13 < found.flops < 2e15
    assert 20e9 < found.facts.free_bytes < 300e9
    assert found.facts.kind == "cuda"


def test_an_h100_is_counted_at_a_share_of_its_peak():
    assert device("h100").flops == pytest.approx(989.4e12 * devices.GPU_UTILIZATION)


def test_a_cpu_is_measured(monkeypatch):
    monkeypatch.setattr(hardware, "measured_matrix_rate", lambda dtype: 4e11)
    found = device("cpu")
    assert found.flops == pytest.approx(4e11 * devices.CPU_UTILIZATION)
    assert "400 GFLOP/s that were measured" in found.how


def test_an_unknown_device_is_named_with_those_that_are_known():
    says = r"new: --device 'h1000' is not known; choose cpu or one of .*h100.*rtx-4090"
    with pytest.raises(UserError, match=says):
        device("h1000")
