"""What `llmkit doctor` measures of a GPU, and what the driver says of it."""

from __future__ import annotations

import pytest
import torch

from llmkit.doctor.collectives import local_findings
from llmkit.doctor.devices import device_findings
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope
from llmkit.doctor.speed import speed_findings
from llmkit.monitor.peaks import published_peak


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {each.name: each for each in found}


def test_speeds_are_those_that_the_device_can_have(device: torch.device) -> None:
    found = by_name(list(speed_findings(Scope("."))))
    assert all(speed > 0.0 for each in found.values() for speed in each.numbers.values())
    if device.type == "cpu":
        assert set(found) == {"products", "memory copy"}
        return
    assert {"copy to GPU", "copy from GPU", "copy in GPU"} <= set(found)
    assert len(found["products"].numbers) == torch.cuda.device_count()
    peak = published_peak(torch.cuda.get_device_name())
    if peak is not None:
        assert all(0.3 * peak < speed < 1.02 * peak for speed in found["products"].numbers.values())
    assert all(1e9 < speed < 1e12 for speed in found["copy to GPU"].numbers.values())
    assert all(1e11 < speed < 2e13 for speed in found["copy in GPU"].numbers.values())


def test_the_driver_is_asked(device: torch.device) -> None:
    found = by_name(list(device_findings(Scope("."))))
    assert found["gpus"].state == "ok"
    if device.type == "cuda" and torch.version.hip is None and "gpu health" not in found:
        assert {"driver", "gpu memory", "gpu state", "gpu in use", "libraries"} <= set(found)
        assert found["driver"].value[0].isdigit() and "NCCL" in found["libraries"].value


@pytest.mark.cuda
def test_collectives_of_all_gpus() -> None:
    (found,) = local_findings(Scope("."))
    assert found.state == "ok" and found.value.startswith("nccl on this machine"), found
