"""What the device can do: its peak matrix rate, its bf16 units, the memory in use."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from llmkit.monitor.peaks import published_peak

MATRIX_SIZES = (512, 1024, 2048)
_DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def device_peak(device: torch.device, dtype: torch.dtype, fp8: bool = False) -> tuple[float | None, str]:
    """FLOP/s to compare training in `dtype` with, and one line that says what the number is.

    A GPU: the published dense bf16 rate, whatever `dtype` (the line says so); None if it is not known.
    A CPU: what a matrix product reaches on the threads of this process. fp8: whether the label of a GPU is to
    tell how this relates to its fp8 peak.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = published_peak(name)
        if peak is None:
            return None, f"no published bf16 peak known for {name}"
        relation = ", half of its fp8 peak" if fp8 else ""
        return peak, f"published dense bf16 peak of {name}, {peak / 1e12:.1f} TFLOP/s{relation}"
    if device.type == "cpu":
        peak = measured_matrix_rate(dtype)
        label, threads = _DTYPE_NAMES.get(dtype, str(dtype)), torch.get_num_threads()
        cores = f"{threads} thread{'s' * (threads > 1)}"
        return peak, f"measured {label} matrix rate of this CPU, {cores}: {peak / 1e9:.0f} GFLOP/s"
    return None, f"no peak known for {device.type} devices"


@cache
def measured_matrix_rate(
    dtype: torch.dtype, seconds: float = 0.3, sizes: tuple[int, ...] = MATRIX_SIZES
) -> float:
    """FLOP/s of the fastest of many matrix products on the CPU, of the size that runs fastest here.

    seconds: of the processor's time, about. Measured once in a process. What other processes take of the CPU
    meanwhile does not count: the clock is that of the calling thread, which does its share of each product.
    """
    best = 0.0
    for size in sizes:
        if best and 2 * size**3 / best > seconds:
            break  # on a slow machine a small product is large enough
        best = max(best, _matrix_rate(dtype, seconds / len(sizes), size))
    return best


def _matrix_rate(dtype: torch.dtype, seconds: float, size: int) -> float:
    """FLOP/s of the fastest of several products of two (size, size) matrices, by this thread's own time."""
    left = torch.ones(size, size, dtype=dtype)
    right = torch.ones(size, size, dtype=dtype)
    out = torch.empty(size, size, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        torch.mm(left, right, out=out)  # the first product also sets up threads and kernels
        stop = time.thread_time() + seconds
        while True:
            begin = time.thread_time()
            torch.mm(left, right, out=out)
            end = time.thread_time()
            best = min(best, end - begin)
            if end >= stop:
                return 2 * size**3 / best


def has_bf16_units(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device multiplies bf16 matrices in hardware, so that bf16 is faster than fp32.

    GPU: compute capability 8.0 (Ampere) or newer. CPU: AVX-512 BF16, AMX, or Arm's bf16 extension,
    as Linux lists them in `cpuinfo`; unknown elsewhere, hence False.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_features(cpuinfo))


def has_avx512_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether AVX-512 BF16 is what this CPU multiplies bf16 fastest with: it has that, but not AMX."""
    features = _cpu_features(cpuinfo)
    return "avx512_bf16" in features and "amx_bf16" not in features


def _cpu_features(cpuinfo: Path) -> set[str]:
    """As Linux lists them; none where there is no list."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return set()
    found = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return {feature for line in found for feature in line.split()}


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU's memory.

    held: of this process's tensors now; peak: the most so far. usable: what the process has or could have.
    """

    held: int
    peak: int
    usable: int


def gpu_memory(device: torch.device) -> GpuMemory:
    """What PyTorch's allocator has counted; asks the host only, and does not wait for the device."""
    free = torch.cuda.mem_get_info(device)[0]
    return GpuMemory(
        torch.cuda.memory_allocated(device),
        torch.cuda.max_memory_allocated(device),
        free + torch.cuda.memory_reserved(device),
    )


def total_memory() -> int:
    """Bytes that this process may have at most: those of the machine, or of its limit, if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min([total, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def peak_memory_gib(device: torch.device) -> float:
    """Most memory in use so far, GiB: tensors on a GPU; on a CPU the whole process (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reserved_memory_gib(device: torch.device) -> float | None:
    """Most memory that PyTorch's allocator has taken from the GPU so far, GiB; None on other devices."""
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None
