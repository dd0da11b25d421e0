"""What a driver may say of GPUs, by a stand-in for NVML and a kernel's log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmkit.doctor.findings import Finding
from llmkit.doctor.gpu_health import health_findings, xid_finding
from tests.doctor.fake_nvml import GIB, NVMLError, Unsupported, fake_nvml


def checked(exclusive: bool = False, **answers: Any) -> dict[str, Finding]:
    nvml = fake_nvml(**answers)
    return {each.name: each for each in health_findings(["0", "1"], exclusive, lambda name: nvml)}


def test_gpus_that_are_well() -> None:
    found = checked()
    assert {name: each.state for name, each in found.items()} == {
        "driver": "ok", "gpu memory": "ok", "gpu state": "ok", "gpu in use": "ok",
    }  # fmt: skip
    assert found["driver"].value == "580.95" and "hottest 41 C" in found["gpu state"].value


def test_errors_of_memory() -> None:
    assert checked(GetTotalEccErrors=[0, 3])["gpu memory"].state == "fail"
    pending = checked(GetRemappedRows=[(0, 1, 1, 0), (0, 0, 0, 0)])["gpu memory"]
    assert pending.state == "warn" and pending.value.startswith("GPU 0: rows of memory are remapped")
    assert checked(GetRemappedRows=[(0, 1, 0, 1), (0, 0, 0, 0)])["gpu memory"].state == "fail"
    without = checked(GetTotalEccErrors=[Unsupported()] * 2, GetRemappedRows=[Unsupported()] * 2)
    assert without["gpu memory"].state == "ok"


def test_what_holds_a_gpu_back() -> None:
    slow = checked(GetCurrentClocksThrottleReasons=[0x1, 0x48])["gpu state"]
    assert (slow.state, slow.value) == ("warn", "GPU 1: hardware slowdown; GPU 1: too hot")
    assert checked(GetCurrPcieLinkWidth=[8, 16])["gpu state"].value == "GPU 0: 8 of 16 PCIe lanes"
    assert checked(GetCurrentClocksThrottleReasons=[0x4, 0x4])["gpu state"].state == "ok"  # its power limit


def test_what_another_process_has_left_on_a_gpu() -> None:
    memory = [SimpleNamespace(used=30 * GIB, total=80 * GIB), SimpleNamespace(used=GIB, total=80 * GIB)]
    processes = [[SimpleNamespace(pid=4242)], []]
    found = checked(GetMemoryInfo=memory, GetComputeRunningProcesses=processes)["gpu in use"]
    assert (found.state, found.value) == ("warn", "GPU 0: 30.0 GiB in use by process 4242")
    assert checked(exclusive=True, GetMemoryInfo=memory)["gpu in use"].state == "fail"


def test_without_nvml_it_says_so() -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    (found,) = health_findings(["0"], False, absent)
    assert found.state == "warn" and "llmkit[gpu]" in found.advice
    broken = fake_nvml()

    def fail() -> None:
        raise NVMLError("Driver/library version mismatch")

    broken.nvmlInit = fail
    (found,) = health_findings(["0"], False, lambda name: broken)
    assert found.value == "not known: Driver/library version mismatch"


def test_errors_in_the_kernels_log_are_named(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    assert xid_finding(log) is None
    log.write_text("6,1,2,-;NVRM: Xid (PCI:0000:17:00): 43, pid=1\n4,1,2,-;usb 1-1: new device\n")
    assert xid_finding(log) is None  # 43 is a fault of the program
    log.write_text("4,1,2,-;NVRM: Xid (PCI:0000:17:00): 79, pid=1, GPU has fallen off the bus.\n" * 2)
    found = xid_finding(log)
    assert found is not None and found.value == "since boot: 0000:17:00: Xid 79, GPU has fallen off the bus"
