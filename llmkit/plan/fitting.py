"""What a step needs of a device's memory, by estimate, and with which other settings it should fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

from llmkit.config.memory import show_bytes
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.activations import Arithmetic, Recompute, training_bytes
from llmkit.plan.plan import Plan
from llmkit.plan.state_memory import State, state_memory

SAFE_SHARE = 0.9
"""Share of a device's memory that may be filled: some is lost between blocks, and estimates are no more."""
MOST = 3
"""Alternatives that are named."""


@dataclass(frozen=True)
class Needed:
    """Bytes of one process. activations: None where nothing is known of the model."""

    state: State
    activations: int | None

    @property
    def on_device(self) -> int:
        """Of the device that computes."""
        return self.state.device + (self.activations or 0)

    def __str__(self) -> str:
        state = self.state
        parts = [(name, size) for name, size in state.parts.items() if name not in state.on_host]
        parts.append(("activations", self.activations or 0))
        return " + ".join(f"{name} {show_bytes(size)}" for name, size in parts if size)


def needed(plan: Plan, micro_batch_size: int, layout: Layout) -> Needed:
    """The estimate for a complete plan with another micro-batch and another layout."""
    state, activations = plan.state, None
    if layout != plan.layout:
        state = state_memory(plan.config, plan.model, plan.precision, layout)
    if isinstance(plan.model, ModelShape):
        kernels, adapts = plan.kernels, plan.config.train.lora.rank > 0
        how = Arithmetic(
            plan.precision, layout, kernels.blocks_compiled, kernels.compiled, kernels.forms, adapters=adapts
        )
        found = training_bytes(plan.model, how)
        activations = int(found.token * micro_batch_size * plan.config.data.row_length + found.fixed)
    return Needed(state, activations)


def alternatives(plan: Plan, room: int) -> list[tuple[list[str], int]]:
    """Settings to change, as overrides, so that a step should fit into `room` bytes, and what it needs then.

    Those that change least come first; of each set of settings the mildest change. None where nothing fits,
    or nothing is known of the model.
    """
    now = needed(plan, plan.micro_batch_size, plan.layout)
    if now.activations is None:
        return []
    limit = SAFE_SHARE * min(room, now.on_device)  # what has failed needs more than was estimated
    found: dict[frozenset[str], tuple[list[str], int]] = {}
    for micro, layout in sorted(_candidates(plan), key=lambda each: _cost(plan, *each)):
        changes = _changes(plan, micro, layout)
        key = frozenset(change.partition("=")[0] for change in changes)
        if not changes or any(known <= key for known in found):
            continue
        if (size := needed(plan, micro, layout).on_device) <= limit:
            found[key] = changes, size
    return list(found.values())[:MOST]


def _candidates(plan: Plan) -> Iterator[tuple[int, Layout]]:
    layout, rows = plan.layout, plan.rows_per_rank
    micros = [n for n in range(1, plan.micro_batch_size + 1) if rows % n == 0]
    levels: tuple[Recompute, ...] = get_args(Recompute)
    levels = levels[levels.index(layout.activation_checkpointing) :]
    native = plan.config.parallel.engine == "native"
    last = layout.zero_stage if layout.data_parallel_size == 1 else 1 if native else 3
    stages = range(layout.zero_stage, max(last, layout.zero_stage) + 1)
    for micro, level, stage in product(micros, levels, stages):
        changed = replace(layout, activation_checkpointing=level, zero_stage=stage)
        yield micro, changed
        if stage and not native and layout.offload == "none":
            yield micro, replace(changed, offload="cpu")


def _changes(plan: Plan, micro: int, layout: Layout) -> list[str]:
    before, now = {"train.micro_batch_size": plan.micro_batch_size}, {"train.micro_batch_size": micro}
    names = ("activation_checkpointing", "zero_stage", "offload")
    values = [(f"parallel.{name}", getattr(plan.layout, name), getattr(layout, name)) for name in names]
    pairs = [(name, before[name], now[name]) for name in before] + values
    return [f"{name}={new}" for name, old, new in pairs if old != new]


def _cost(plan: Plan, micro: int, layout: Layout) -> tuple[int, float]:
    """Fewer changes first, then what costs less time; offloading costs most."""
    levels: tuple[Recompute, ...] = get_args(Recompute)
    time = plan.micro_batch_size / micro - 1.0
    time += 1.5 * (layout.zero_stage - plan.layout.zero_stage)
    time += 2.0 * levels.index(layout.activation_checkpointing) + 20.0 * (layout.offload == "cpu")
    return len(_changes(plan, micro, layout)), time
