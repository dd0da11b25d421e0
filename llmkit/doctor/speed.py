"""How fast each device multiplies matrices and copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llmkit.device import choose_device
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope
from llmkit.monitor.hardware import device_peak, has_bf16_units
from llmkit.monitor.peaks import published_peak

GPU_SIZE = 8192
"""Rows and columns of a product that keeps any GPU busy."""
COPIED = 2**28
"""Bytes of a copy on a GPU; a quarter of it on a CPU."""
OF_PEAK = 0.4
"""Share of the published peak below which a GPU is probably held back: such products reach 0.6 to 0.8."""


def speed_findings(scope: Scope) -> Iterator[Finding]:
    """Takes about a second a device, and a tenth with no GPU."""
    if not torch.cuda.is_available():
        yield from cpu_findings()
        return
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    seconds = 5.0 if scope.full else 0.5
    yield products_finding({device: product_rate(device, GPU_SIZE, seconds) for device in devices})
    yield from copy_findings(devices)


def cpu_findings() -> Iterator[Finding]:
    """By this process's own time, so that what else runs here does not count."""
    device = choose_device()
    dtype = torch.bfloat16 if has_bf16_units(device) else torch.float32
    rate, text = device_peak(device, dtype)
    yield Finding("products", "ok", text, "", "speed", {"CPU": rate or 0.0})
    source = torch.ones(COPIED // 4, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = COPIED // 4 / _fastest(lambda: target.copy_(source), 3, time.thread_time)
    yield Finding("memory copy", "ok", f"{copied / 1e9:.1f} GB/s", "", "speed", {"CPU memory": copied})


def product_rate(device: torch.device, size: int, seconds: float) -> float:
    """FLOP/s of bf16 products of (size, size) matrices on a GPU, the fastest of several rounds."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=torch.bfloat16)
    rounds, best = 4, float("inf")
    torch.mm(left, right, out=out)
    end = time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < end:

        def several() -> None:
            for _ in range(rounds):
                torch.mm(left, right, out=out)

        best = min(best, _gpu_seconds(device, several) / rounds)
    return 2.0 * size**3 / best


def products_finding(rates: dict[torch.device, float]) -> Finding:
    """rates: FLOP/s of each GPU, which are held against the published peak where it is known."""
    numbers = {_label(device): rate for device, rate in rates.items()}
    value = "bf16 " + ", ".join(f"{rate / 1e12:.0f}" for rate in numbers.values()) + " TFLOP/s"
    slow = []
    for device, rate in rates.items():
        peak = published_peak(torch.cuda.get_device_name(device))
        if peak is not None and rate < OF_PEAK * peak:
            slow.append(f"GPU {device.index} reaches {rate / peak:.2f} of its published peak")
    if slow:
        advice = (
            "look at nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE: power limit, heat, or another process"
        )
        return Finding("products", "warn", f"{value}; {'; '.join(slow)}", advice, "speed", numbers)
    return Finding("products", "ok", value, "", "speed", numbers)


def copy_findings(devices: list[torch.device]) -> Iterator[Finding]:
    """From the host's pinned memory, back to it, within a GPU, and between neighbours."""
    host = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    rates: dict[str, dict[str, float]] = {"to GPU": {}, "from GPU": {}, "in GPU": {}, "between GPUs": {}}
    for device, neighbour in zip(devices, devices[1:] + devices[:1]):
        here, there = (torch.empty(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
        name = _label(device)
        rates["to GPU"][name] = _copied(device, here, host)
        rates["from GPU"][name] = _copied(device, host, here)
        rates["in GPU"][name] = 2 * _copied(device, there, here)  # read and written
        if neighbour != device:
            beside = torch.empty(COPIED, dtype=torch.uint8, device=neighbour)
            rates["between GPUs"][f"{name} to {neighbour.index}"] = _copied(device, beside, here)
    for kind, numbers in rates.items():
        if numbers:
            value = ", ".join(f"{rate / 1e9:,.0f}" for rate in numbers.values()) + " GB/s"
            yield Finding(f"copy {kind}", "ok", value, "", "speed", numbers)


def _label(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)} #{device.index}"


def _copied(device: torch.device, target: torch.Tensor, source: torch.Tensor) -> float:
    """Bytes a second."""

    def copy() -> None:
        target.copy_(source, non_blocking=True)

    copy()
    return COPIED / min(_gpu_seconds(device, copy) for _ in range(3))


def _gpu_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that a GPU takes for what `work` gives it."""
    begin: Any = torch.cuda.Event(enable_timing=True)
    end: Any = torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):
        begin.record()
        work()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _fastest(work: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
    best = float("inf")
    for _ in range(times):
        begin = clock()
        work()
        best = min(best, clock() - begin)
    return max(best, 1e-9)
