"""What a plan must know of a device that is not at hand."""

from __future__ import annotations

from llmkit.estimate.hardware import Architecture, Device
from llmkit.plan.facts import DeviceFacts

FREE_SHARE = 0.94
"""Share of a GPU's memory that a process finds free, about, once it has a context."""
CAPABILITIES: dict[Architecture, tuple[int, int]] = {
    "ampere": (8, 0), "ada": (8, 9), "hopper": (9, 0), "blackwell": (10, 0),
}  # fmt: skip
"""NVIDIA's compute capability."""


def facts_of(device: Device) -> DeviceFacts:
    """The facts of a GPU with PyTorch, a compiler and Triton, as `llmkit.device.device_facts` finds them.

    Packages for flash attention beside PyTorch's are taken to be absent.
    """
    bf16 = "bf16" in device.flops
    if device.architecture == "cpu":
        return DeviceFacts(kind="cpu", has_bf16_units=bf16)
    return DeviceFacts(
        kind="cuda", has_bf16_units=bf16, free_bytes=int(FREE_SHARE * device.memory),
        capability=CAPABILITIES.get(device.architecture), triton=True, varlen=True,
    )  # fmt: skip
