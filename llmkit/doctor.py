"""What this machine has for training, in a page that can be put into a bug report."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from llmkit import __version__
from llmkit.config.memory import show_bytes
from llmkit.cores import available_cores, host_memory
from llmkit.device import choose_device
from llmkit.errors import UserError
from llmkit.kernels.compiler import compiler_missing
from llmkit.monitor.energy import find_sources
from llmkit.monitor.hardware import device_peak, has_bf16_units
from llmkit.monitor.wandb_mode import resolve_mode, server_url

PACKAGES = ("torch", "accelerate", "deepspeed", "transformers", "datasets", "tokenizers", "wandb", "triton")
WIDTH = 14


def doctor_command(environment: Mapping[str, str]) -> int:
    """Prints what is there; returns the exit code."""
    for label, value in findings(environment):
        print(f"{label:<{WIDTH}}{value}")
    return 0


def findings(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what, how it is), line by line."""
    yield "llmkit", f"{__version__}, python {platform.python_version()}, {platform.platform()}"
    for name in PACKAGES:
        yield name, _version(name)
    device = choose_device()
    yield "cpu", _cpu()
    yield "gpus", _gpus()
    yield "precision", _precision(device)
    yield "peak", device_peak(device, torch.bfloat16 if has_bf16_units(device) else torch.float32)[1]
    yield "energy", _energy(device)
    missing = compiler_missing(device)
    yield "torch.compile", "can be used" if missing is None else f"cannot be used: {missing}"
    yield "backends", _backends()
    yield "slurm", "sbatch is there" if shutil.which("sbatch") else "no sbatch found"
    yield "wandb mode", _wandb(environment)
    yield "disk", _disk(Path.cwd())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    there = host_memory()
    memory = "" if there is None else f", {show_bytes(there)} of memory and swap"
    return f"{available_cores()} cores{memory}, torch uses {torch.get_num_threads()} threads"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return (
            "none that torch can use"
            if torch.version.cuda or torch.version.hip
            else "this torch has no GPU code"
        )
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return "; ".join(f"{each.name} ({each.total_memory / 2**30:.1f} GiB)" for each in found)


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


def _wandb(environment: Mapping[str, str]) -> str:
    try:
        decision = resolve_mode("auto", environment)
    except UserError as error:
        return str(error)
    why = f" ({decision.reason})" if decision.reason else ""
    where = f" at {server_url(environment)}" if decision.mode == "online" else ""
    return f"{decision.mode}{where}{why}"


def _disk(folder: Path) -> str:
    usage = shutil.disk_usage(folder)
    return f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {folder}"
