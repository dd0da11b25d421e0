"""Processors, memory, and the limits that the system sets to this user's processes."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmkit.config.memory import show_bytes
from llmkit.cores import available_cores, host_memory
from llmkit.doctor.findings import Finding

FEW_FILES = 4096
"""Open files: each loader's worker, each connection to another rank and each shard takes some."""
SMALL_SHARED = 2**30
"""Bytes of /dev/shm; containers get 64 MiB where nobody asks for more."""
LITTLE_MEMORY = 0.05
"""Share of the memory below which a start probably fails."""
INFINIBAND = Path("/sys/class/infiniband")


def machine_findings() -> Iterator[Finding]:
    """All that needs neither a device nor a disk."""
    yield Finding(
        "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}", compared="should"
    )
    yield cpu_finding(available_cores(), os.cpu_count() or 1)
    yield Finding("load", "ok", " ".join(f"{load:.1f}" for load in os.getloadavg()))
    memory = psutil.virtual_memory()
    yield memory_finding(host_memory(), memory.available, memory.total)
    yield numa_finding()
    yield open_files_finding(resource.getrlimit(resource.RLIMIT_NOFILE))
    yield locked_memory_finding(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], INFINIBAND.is_dir())
    yield shared_memory_finding()


def cpu_finding(cores: int, all_cores: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """cores: that this process may use, of the machine's."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    value = f"{cores} of {all_cores} cores" + (f" of {names[0]}" if names else "")
    if cores == 1 < all_cores:
        advice = (
            "unset SLURM_CPU_BIND, or ask for more by --cpus-per-task: loading and training share one core"
        )
        return Finding("cpu", "warn", value, advice, "should")
    return Finding("cpu", "ok", value, compared="should")


def memory_finding(usable: int | None, available: int, total: int) -> Finding:
    """usable: bytes that this process may use, swap included; None = unknown. Of the machine's `total` some
    are available."""
    value = f"{show_bytes(available)} of {show_bytes(total)} available"
    if usable is not None:
        value += f", {show_bytes(usable)} for this process with swap"
    if available < LITTLE_MEMORY * total:
        advice = "see what takes it (top, ls /dev/shm): what an ended job has left may be removed"
        return Finding("memory", "warn", value, advice)
    return Finding("memory", "ok", value)


def numa_finding(nodes: Path = Path("/sys/devices/system/node")) -> Finding:
    """How many memory nodes there are."""
    count = len(list(nodes.glob("node[0-9]*")))
    return Finding(
        "numa", "ok", f"{count} node{'s' * (count > 1)}" if count else "unknown", compared="should"
    )


def open_files_finding(limits: tuple[int, int]) -> Finding:
    """limits: soft and hard, of `ulimit -n`."""
    soft, hard = (2**63 if limit == resource.RLIM_INFINITY else limit for limit in limits)
    value = " of at most ".join("unlimited" if limit == 2**63 else str(limit) for limit in (soft, hard))
    if hard < FEW_FILES:
        advice = (
            f"have the administrator raise nofile to {FEW_FILES} or more (limits.conf; docker run --ulimit)"
        )
        return Finding("open files", "warn", value, advice)
    if soft < FEW_FILES:
        return Finding("open files", "warn", value, f"run `ulimit -n {min(hard, 2**16)}` before the start")
    return Finding("open files", "ok", value)


def locked_memory_finding(limit: int, infiniband: bool) -> Finding:
    """limit: bytes, of `ulimit -l`. infiniband: whether NCCL will lock buffers for it."""
    if limit == resource.RLIM_INFINITY:
        return Finding("locked memory", "ok", "unlimited")
    if infiniband and limit < 2**30:
        return Finding(
            "locked memory", "warn", show_bytes(limit),
            "InfiniBand needs `ulimit -l unlimited`, under SLURM PropagateResourceLimitsExcept=MEMLOCK",
        )  # fmt: skip
    return Finding("locked memory", "ok", show_bytes(limit))


def shared_memory_finding(folder: Path = Path("/dev/shm")) -> Finding:
    """Where processes of this machine exchange data: NCCL, and workers that load."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("shared memory", "warn", f"{folder}: {error.strerror}", "mount a tmpfs there")
    value = f"{show_bytes(usage.free)} of {show_bytes(usage.total)} free in {folder}"
    if usage.total < SMALL_SHARED:
        return Finding("shared memory", "warn", value, "give a container more: docker run --shm-size=16g")
    if usage.free < SMALL_SHARED // 4:
        advice = f"remove what ended processes have left in {folder}: NCCL would fail to start"
        return Finding("shared memory", "warn", value, advice)
    return Finding("shared memory", "ok", value)
