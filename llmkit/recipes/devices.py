"""What a device does in an hour: the rates that `llmkit new --hours` counts with."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import UserError
from llmkit.monitor.peaks import published_peak
from llmkit.plan.facts import DeviceFacts

GPU_UTILIZATION = 0.4
"""Share of the peak that training is assumed to reach on a GPU: published runs of models of 0.1 to 1 billion
weights on H100s stand at 0.41 to 0.50 (nanochat), smaller models lower. No measurement of llmkit's."""
CPU_UTILIZATION = 0.5
"""Of a CPU's matrix rate: measured with llmkit on an EPYC, 0.34 (the demo, two threads) to 0.86 (124M)."""
FREE_MEMORY = 0.95
"""Share of a GPU's memory that a process has: the rest is the driver's and the context's."""

GPUS = {
    "a10": ("A10", 24), "a100": ("A100", 80), "a100-40gb": ("A100", 40), "a30": ("A30", 24),
    "a40": ("A40", 48), "b200": ("B200", 180), "gb200": ("GB200", 186), "h100": ("H100", 80),
    "h100-nvl": ("H100 NVL", 94), "h100-pcie": ("H100 PCIe", 80), "h20": ("H20", 96), "h200": ("H200", 141),
    "l4": ("L4", 24), "l40": ("L40", 48), "l40s": ("L40S", 48), "mi300x": ("AMD Instinct MI300X", 192),
    "mi325x": ("AMD Instinct MI325X", 256), "rtx-3090": ("GeForce RTX 3090", 24),
    "rtx-4090": ("GeForce RTX 4090", 24), "rtx-5090": ("GeForce RTX 5090", 32),
    "rtx-6000-ada": ("RTX 6000 Ada Generation", 48), "rtx-a6000": ("RTX A6000", 48),
}  # fmt: skip
"""Name on the command line: name by which PyTorch calls it, and GB of its memory by its data sheet."""


@dataclass(frozen=True)
class Device:
    """One of the devices that a run is planned for.

    flops: FLOP/s of training that are assumed. how: where that number comes from. facts: for a plan.
    """

    name: str
    flops: float
    how: str
    facts: DeviceFacts


def device(name: str) -> Device:
    """The device of this name, in either case: one of `GPUS`, or cpu, whose matrix rate is measured here.

    Raises UserError for another name.
    """
    name = name.lower()
    if name == "cpu":
        return _this_cpu()
    if name not in GPUS:
        raise UserError(f"new: --device {name[:40]!r} is not known; choose cpu or one of {', '.join(GPUS)}")
    full, memory = GPUS[name]
    peak = published_peak(full)
    assert peak is not None, "a test asks for the peak of every name"
    how = f"{GPU_UTILIZATION:.0%} of the published {peak / 1e12:.0f} TFLOP/s of one {full}, which is assumed"
    free = int(FREE_MEMORY * memory * 1e9)
    facts = DeviceFacts(kind="cuda", has_bf16_units=True, free_bytes=free, triton=True, varlen=True)
    return Device(name, GPU_UTILIZATION * peak, how, facts)


def _this_cpu() -> Device:
    """The CPU of this machine."""
    import torch

    from llmkit.monitor.hardware import has_bf16_units, measured_matrix_rate

    bf16 = has_bf16_units(torch.device("cpu"))
    rate = measured_matrix_rate(torch.bfloat16 if bf16 else torch.float32)
    how = (
        f"{CPU_UTILIZATION:.0%}, which is assumed, of the {rate / 1e9:.0f} GFLOP/s that were measured on "
        f"this CPU ({torch.get_num_threads()} threads)"
    )
    return Device("cpu", CPU_UTILIZATION * rate, how, DeviceFacts(has_bf16_units=bf16))
