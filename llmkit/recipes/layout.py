"""How a model fits into the memory of devices: the first layout that does, the fastest tried first."""

from __future__ import annotations

from typing import Any

from llmkit.config.memory import show_bytes
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.plan.batch import MEMORY_SHARE
from llmkit.plan.memory import memory
from llmkit.plan.resolve import plan_for_shape
from llmkit.recipes.devices import Device
from llmkit.recipes.recipe import Setting

RECOMPUTE = {
    "none": "",
    "selective": "what is cheap to compute is not kept for the backward pass",
    "full": "nothing in a block is kept for the backward pass",
}


def fitting_layout(
    name: str, shape: ModelShape, settings: dict[str, Any], device: Device, gpus: int
) -> dict[str, Setting]:
    """The section `parallel` with which a model trains on so many of a device; empty where none is needed.

    settings: the other sections. Raises UserError if a row is too much for each of them; name: of the run.
    """
    if device.facts.kind == "cpu":
        return {}
    stages = (0, 1, 3) if gpus > 1 else (0,)
    needs: list[tuple[float, int]] = []
    for stage in stages:
        for recompute, why in RECOMPUTE.items():
            parallel = {"world_size": gpus, "zero_stage": stage, "activation_checkpointing": recompute}
            state, activations = _bytes(shape, settings | {"parallel": parallel}, device)
            if activations <= MEMORY_SHARE * (device.facts.free_bytes - state):
                return _section(stage, recompute, why, gpus)
            needs.append((state + activations / MEMORY_SHARE, stage))
    least, stage = min(needs)
    raise UserError(
        f"new: {name}, of {shape.num_parameters / 1e6:,.0f}M parameters, does not fit: a process needs "
        f"{show_bytes(least)} at least (ZeRO stage {stage}, full activation checkpointing), and --device "
        f"{device.name} has {show_bytes(device.facts.free_bytes)}; give more devices "
        "by --gpus, or ask for a smaller model"
    )


def _section(stage: int, recompute: str, why: str, gpus: int) -> dict[str, Setting]:
    section = {}
    if stage:
        what = "masters and moments" if stage == 1 else "weights, gradients, masters and moments"
        section["zero_stage"] = Setting(stage, f"{gpus} processes share {what}: a copy each does not fit")
    if recompute != "none":
        section["activation_checkpointing"] = Setting(recompute, why)
    return section


def _bytes(shape: ModelShape, settings: dict[str, Any], device: Device) -> tuple[float, float]:
    """Of a process: state with buffers, and the activations of one row."""
    needs = memory(plan_for_shape(shape, settings, device.facts), micro_batch_size=1)
    return needs.on_device - needs.activation_bytes, needs.activation_bytes
