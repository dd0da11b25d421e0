"""What a device does in an hour: the rates that `llmkit new --hours` counts with."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of
from llmkit.plan.facts import DeviceFacts

GPU_UTILIZATION = 0.4
"""Share of the peak that training is assumed to reach on a GPU: published runs of models of 0.1 to 1 billion
weights on H100s stand at 0.41 to 0.50 (nanochat), smaller models lower. No measurement of llmkit's."""
CPU_UTILIZATION = 0.5
"""Of a CPU's matrix rate: measured with llmkit on an EPYC, 0.34 (the demo, two threads) to 0.86 (124M)."""


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
    """The device of this name, in either case: one of `llmkit.estimate.devices`, or cpu, whose matrix rate is
    measured here.

    Raises UserError for another name.
    """
    if name.lower() == "cpu":
        return _this_cpu()
    hardware = Hardware()
    if name.lower() not in hardware.devices:
        known = ", ".join(hardware.devices)
        raise UserError(f"new: --device {name[:40]!r} is not known; choose cpu or one of {known}")
    found = hardware.device(name)
    peak = found.flops["bf16"]
    published = f"the published {peak / 1e12:.0f} TFLOP/s of one {found.label}"
    how = f"{GPU_UTILIZATION:.0%} of {published}, which is assumed"
    return Device(found.name, GPU_UTILIZATION * peak, how, facts_of(found))


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
