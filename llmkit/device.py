"""The device that this process computes on, and what a plan must know of it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from llmkit.config.operators import FLASH_PACKAGES
from llmkit.config.schema import Config
from llmkit.cores import available_cores
from llmkit.extras import missing_extra
from llmkit.kernels.attention_varlen import kernel_parameters
from llmkit.kernels.compiler import compiler_missing
from llmkit.monitor.hardware import has_avx512_bf16, has_bf16_units
from llmkit.plan import DeviceFacts

AUTO_WORKERS = 4
"""Processes that tokenize, unless more are asked for: a few feed any number of GPUs of one process."""


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def device_facts(device: torch.device, compiled: bool = False) -> DeviceFacts:
    """What a plan must know of `device`. compiled: whether modules are to be compiled if that can work."""
    on_gpu = device.type == "cuda"
    return DeviceFacts(
        kind="cuda" if on_gpu else "cpu",
        has_bf16_units=has_bf16_units(device),
        free_bytes=torch.cuda.mem_get_info(device)[0] if on_gpu else 0,
        compiler_missing=compiler_missing(device) if compiled else None,
        capability=torch.cuda.get_device_capability(device) if on_gpu and torch.version.hip is None else None,
        triton=triton_runs(device),
        avx512_bf16=not on_gpu and has_avx512_bf16(),
        varlen=on_gpu and "window_size" in kernel_parameters(),
        flash=flash_packages() if on_gpu else frozenset(),
        nf4_missing=missing_extra("quantize", "bitsandbytes"),
    )


def flash_packages() -> frozenset[str]:
    """The forms of attention whose package is installed, and that this PyTorch can call. Imports none."""
    from torch.nn import attention  # takes a second

    known = getattr(attention, "list_flash_attention_impls", list[str])()
    return frozenset(
        form
        for form, (implementation, package, file) in FLASH_PACKAGES.items()
        if implementation in known and _installed(package, file)
    )


def _installed(package: str, file: str) -> bool:
    """Whether the package is found, with this file in it; "": whatever is in it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not file:
        return spec is not None
    return any(Path(folder, file).is_file() for folder in spec.submodule_search_locations or ())


def triton_runs(device: torch.device) -> bool:
    """Whether Triton kernels can run on it: on a CPU in Triton's interpreter, where that is asked for."""
    if not importlib.util.find_spec("triton"):
        return False
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose_workers(config: Config, local_size: int) -> int:
    """`data.workers`, or for "auto" half of the cores that each of the host's processes has, at most 4."""
    if config.data.workers != "auto":
        return config.data.workers
    return min(AUTO_WORKERS, available_cores() // local_size // 2)


def make_deterministic() -> None:
    """Bit-equal results on one machine. MKL and cuBLAS read theirs from the environment, set by the CLI."""
    torch.use_deterministic_algorithms(True)
    # Costs time, and nothing here reads memory that it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
