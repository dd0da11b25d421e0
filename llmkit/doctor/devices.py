"""The devices of this machine, and what PyTorch can do with them."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist

from llmkit.device import choose_device
from llmkit.doctor.findings import Finding
from llmkit.doctor.gpu_health import health_findings, xid_finding
from llmkit.doctor.scope import Scope
from llmkit.kernels.compile_cache import use_compile_cache
from llmkit.kernels.compiler import compile_function, compiler_missing
from llmkit.monitor.energy import find_sources
from llmkit.monitor.hardware import has_bf16_units


def device_findings(scope: Scope) -> Iterator[Finding]:
    """Starts the driver."""
    yield gpus_finding(scope.expected_gpus)
    if torch.cuda.is_available() and torch.version.hip is None:
        yield from _nvidia_findings(scope)
    device = choose_device()
    yield Finding("precision", "ok", _precision(device), compared="should")
    yield Finding("energy", "ok", _energy(device))
    missing = compiler_missing(device) or (compile_failure(device) if scope.full else None)
    if missing is None:
        yield Finding("torch.compile", "ok", "can be used", compared="should")
    else:
        advice = "mend that, or set kernels.compile=false (training is slower)"
        yield Finding("torch.compile", "warn", f"cannot be used: {missing}", advice, "should")
    yield Finding("backends", "ok", _backends(), compared="should")


def _nvidia_findings(scope: Scope) -> Iterator[Finding]:
    """What the driver and the kernel say. Of a part of a GPU (MIG) NVML knows little."""
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if not any("MIG" in each.name.split() for each in properties):
        uuids = [str(each.uuid) for each in properties]
        yield from health_findings(uuids, scope.expected_gpus is not None, importlib.import_module)
    if (errors := xid_finding()) is not None:
        yield errors
    yield Finding("libraries", "ok", _libraries(), compared="must")


def gpus_finding(expected: int | None) -> Finding:
    """Names and memory, and whether there are as many as expected."""
    built = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        value = "none that torch can use" if built else "this torch has no GPU code"
        count = 0
    else:
        count = torch.cuda.device_count()
        found = (torch.cuda.get_device_properties(index) for index in range(count))
        names = Counter(f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in found)
        value = ", ".join(f"{number} x {name}" for name, number in names.items())
    if expected is not None and count != expected:
        advice = "look at nvidia-smi and the kernel's log on this node: a GPU that is gone needs a reboot"
        if not built:
            advice = "install a PyTorch with GPU code into this Python environment; the node is not to blame"
        return Finding("gpus", "fail", f"{count} instead of {expected}: {value}", advice, "must")
    return Finding("gpus", "ok", value, compared="must")


def _libraries() -> str:
    """Those that must be the same for GPUs to compute and talk alike."""
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none"
    return f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"


def compile_failure(device: torch.device) -> str | None:
    """Why a small function cannot be compiled and run; None if it can."""
    failures: list[str] = []
    use_compile_cache(os.environ, 1, lambda note: None)
    compile_function(lambda x: (x * 2 + 1).sum(), failures.append, name="a small function")(
        torch.ones(64, device=device)
    )
    return failures[0] if failures else None


def _precision(device: torch.device) -> str:
    if has_bf16_units(device):
        return f"bf16 by default: the {device.type} has units for it"
    return f"fp32 by default: the {device.type} has no units for bf16"


def _energy(device: torch.device) -> str:
    counters, missing = find_sources(device)
    found = [f"{each.kind} {each.name}" for each in counters] or ["none"]
    return "; ".join([", ".join(found), *(f"no {kind}: {why}" for kind, why in missing.items())])


def _backends() -> str:
    known = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available, "mpi": dist.is_mpi_available}
    return ", ".join(name for name, there in known.items() if there()) or "none"
