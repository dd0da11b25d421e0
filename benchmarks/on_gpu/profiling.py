"""Where the time of a step goes, kernel by kernel."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.setting import Setting

SHOWN = 25
KINDS = (
    ("attention", r"flash|fmha|sdpa|attention|softmax.*attn"),
    ("between GPUs", r"^nccl"),
    ("over all parameters", r"multi_tensor_apply|[aA]dam|_foreach"),
    ("products", r"gemm|nvjet|cutlass|xmma|splitK|^aten::(mm|addmm|bmm|_scaled_mm)$|mkldnn_linear"),
    ("fused by torch.compile", r"^triton_|^graph_\d+_cpp_fused"),
    ("copies", r"^Mem(cpy|set)|^aten::copy_$"),
)
"""Kinds of kernels by their names, the first that fits."""
REST = "the rest"

NOTES = (
    "llmkit, one step of the rows below in the precision of the title, by PyTorch's profiler: seconds of "
    f"each kernel, of the {SHOWN} that take most, and of all by their kind (a guess by name). Profiled "
    "kernels may run a little slower; gaps between kernels are in 'step' alone, which is timed without "
    "the profiler.",
)  # fmt: skip


def measure(setting: Setting) -> Iterator[Row]:
    """A table a shape."""
    from benchmarks.on_gpu.steps import task_of, turn, why

    for name in setting.shapes or (("toy",) if setting.toy else ("llama-1b", "124m")):
        table = f"A step's kernels: {name}"
        outcome = turn(dataclasses.replace(task_of(setting, "llmkit", name), profile=True), setting)
        if outcome.failed is not None:
            yield Row(table, {"kernel": why(outcome.failed)})
            continue
        total = sum(seconds for _, seconds, _ in outcome.kernels) or 1.0
        kinds: dict[str, list[float]] = {}
        for kernel, seconds, calls in outcome.kernels:
            kind = kinds.setdefault(kind_of(kernel), [0.0, 0])
            kind[0], kind[1] = kind[0] + seconds, kind[1] + calls
        listed = [
            (f"all: {kind}", *sums) for kind, sums in sorted(kinds.items(), key=lambda each: -each[1][0])
        ]
        listed += outcome.kernels[:SHOWN]
        yield Row(table, {"kernel": "step, without the profiler", "ms": f"{1e3 * min(outcome.seconds):.2f}"})
        for kernel, seconds, calls in listed:
            cells = {"kernel": kernel, "ms": f"{1e3 * seconds:.3f}", "share": f"{seconds / total:.1%}"}
            yield Row(table, cells | {"calls": f"{calls:.0f}"})


def kind_of(kernel: str) -> str:
    """The kind of a kernel of that name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel)), REST)


def kernel_times(step: Callable[[], Any], device: torch.device) -> list[tuple[str, float, int]]:
    """Name, seconds and calls of each kernel while `step` runs, the longest first; on a CPU of operators."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
    found = []
    for event in profiler.key_averages():
        if event.is_user_annotation:
            continue  # a range of kernels, which are counted themselves
        if (event.device_type == torch.autograd.DeviceType.CUDA) == on_gpu:
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            found.append((event.key[:100], microseconds / 1e6, event.count))
    return sorted(found, key=lambda each: -each[1])
