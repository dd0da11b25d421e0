"""What NVIDIA's driver says of its GPUs: errors of memory, what holds them back, who else uses them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit.config.memory import show_bytes
from llmkit.doctor.findings import Finding

HELD_BACK = {0x8: "hardware slowdown", 0x40: "too hot", 0x80: "power brake"}
"""Bits of nvmlDeviceGetCurrentClocksThrottleReasons that come from the hardware, not from its load."""
USED = 2 * 2**30
"""Bytes of a GPU's memory that more than a driver's own use."""
KERNEL_LOG = Path("/dev/kmsg")
XIDS = {
    48: "double-bit memory error", 64: "rows of memory could not be remapped", 74: "NVLink error",
    79: "GPU has fallen off the bus", 92: "many single-bit memory errors", 94: "memory error, contained",
    95: "memory error, uncontained", 119: "GPU's own processor is silent", 120: "GPU's own processor failed",
}  # fmt: skip
"""Errors of the driver that come from the hardware (NVIDIA's list of Xid errors)."""
RESET = "reset the GPU (nvidia-smi -r, with nothing on it) or reboot the node; if it comes back, replace it"


def health_findings(uuids: Sequence[str], exclusive: bool, load: Callable[[str], Any]) -> Iterator[Finding]:
    """uuids: of the GPUs, as PyTorch gives them. exclusive: whether nobody else may use them. load: imports
    a module; NVML's stands there for the driver.
    """
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
    except ImportError:
        advice = "pip install 'llmkit[gpu]': errors of GPU memory are not seen without"
        yield Finding("gpu health", "warn", "not known: nvidia-ml-py is not installed", advice)
        return
    except nvml.NVMLError as error:
        yield Finding("gpu health", "warn", f"not known: {error}", "look at nvidia-smi")
        return
    gpus = [_Gpu(nvml, index, handle) for index, handle in enumerate(handles)]
    yield Finding("driver", "ok", str(nvml.nvmlSystemGetDriverVersion()), compared="should")
    yield _memory_errors(gpus)
    yield _held_back(gpus)
    yield _others(gpus, exclusive)


class _Gpu:
    """One GPU, asked in NVML; what it does not support is None."""

    def __init__(self, nvml: Any, index: int, handle: Any) -> None:
        self.nvml, self.name, self._handle = nvml, f"GPU {index}", handle

    def ask(self, function: str, *arguments: Any) -> Any:
        """The result of nvmlDevice + function."""
        try:
            return getattr(self.nvml, f"nvmlDevice{function}")(self._handle, *arguments)
        except (self.nvml.NVMLError, AttributeError):  # of an older driver or package
            return None


def _memory_errors(gpus: Sequence[_Gpu]) -> Finding:
    failed, pending = [], []
    for gpu in gpus:
        nvml = gpu.nvml
        uncorrected = gpu.ask(
            "GetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        rows = gpu.ask("GetRemappedRows")  # corrected, uncorrected, pending, failed
        if rows is not None and rows[3]:
            failed.append(f"{gpu.name}: rows of memory could not be remapped")
        elif uncorrected:
            failed.append(f"{gpu.name}: {uncorrected} uncorrected errors since the last reset")
        elif rows is not None and rows[2]:
            pending.append(f"{gpu.name}: rows of memory are remapped at the next reset")
    if failed or pending:
        return Finding("gpu memory", "fail" if failed else "warn", "; ".join(failed + pending), RESET)
    return Finding("gpu memory", "ok", "no uncorrected errors")


def _held_back(gpus: Sequence[_Gpu]) -> Finding:
    found, hottest = [], 0
    for gpu in gpus:
        reasons = gpu.ask("GetCurrentClocksThrottleReasons") or 0
        found += [f"{gpu.name}: {text}" for bit, text in HELD_BACK.items() if reasons & bit]
        width, most = gpu.ask("GetCurrPcieLinkWidth"), gpu.ask("GetMaxPcieLinkWidth")
        if width and most and width < most:
            found.append(f"{gpu.name}: {width} of {most} PCIe lanes")
        hottest = max(hottest, gpu.ask("GetTemperature", gpu.nvml.NVML_TEMPERATURE_GPU) or 0)
    if found:
        advice = "look at cooling, power supplies and the seat of the card (nvidia-smi -q -d PERFORMANCE)"
        return Finding("gpu state", "warn", "; ".join(found), advice)
    return Finding("gpu state", "ok", f"nothing holds them back; hottest {hottest} C")


def _others(gpus: Sequence[_Gpu], exclusive: bool) -> Finding:
    """Asked before this process uses any of their memory."""
    found = []
    for gpu in gpus:
        memory = gpu.ask("GetMemoryInfo")
        if memory is None or memory.used < max(USED, memory.total // 20):
            continue
        processes = [
            each.pid for each in gpu.ask("GetComputeRunningProcesses") or [] if each.pid != os.getpid()
        ]
        who = f" by process {', '.join(map(str, processes))}" if processes else ""
        found.append(f"{gpu.name}: {show_bytes(memory.used)} in use{who}")
    if found:
        advice = "end what an earlier job has left there, or choose another GPU by CUDA_VISIBLE_DEVICES"
        return Finding("gpu in use", "fail" if exclusive else "warn", "; ".join(found), advice)
    return Finding("gpu in use", "ok", "by nobody else")


def xid_finding(log: Path = KERNEL_LOG) -> Finding | None:
    """Errors of the hardware in the kernel's log since boot; None where none is seen, as by a plain user."""
    found: dict[str, None] = {}
    for line in _kernel_lines(log):
        match = re.search(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)", line)
        if match and (what := XIDS.get(int(match[2]))):
            found[f"{match[1]}: Xid {match[2]}, {what}"] = None
    if not found:
        return None
    return Finding("gpu errors", "warn", f"since boot: {'; '.join(found)}", RESET)


def _kernel_lines(log: Path) -> Iterator[str]:
    """A record a read; ends where the next one would be waited for."""
    try:
        handle = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while record := os.read(handle, 2**13):
            yield from record.decode(errors="replace").splitlines()
    except OSError:  # there is no more (EAGAIN), or the record was overwritten meanwhile (EPIPE)
        return
    finally:
        os.close(handle)
