"""With which other settings a step should fit into the memory of a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import get_args

from llmkit.config.derive import divisors
from llmkit.config.memory import show_bytes
from llmkit.parallel.layout import Layout
from llmkit.plan.arithmetic import Recompute
from llmkit.plan.memory import memory
from llmkit.plan.plan import Plan

SAFE_SHARE = 0.9
"""Share of a device's memory that may be filled: some is lost between blocks, and estimates are no more."""
MOST = 3
"""Alternatives that are named."""


def should_fit(plan: Plan, room: int, on_gpu: bool) -> str:
    """A sentence on the settings with which a step should fit; arguments as of `alternatives`."""
    if found := alternatives(plan, room, on_gpu):
        options = [f"{' '.join(changes)} (needs {show_bytes(size)})" for changes, size in found]
        return f"What should fit: {', or '.join(options)}"
    return (
        "Try a smaller train.micro_batch_size, or more processes that share the state "
        "(parallel.zero_stage, parallel.tensor_parallel_size)"
    )


def alternatives(plan: Plan, room: int, on_gpu: bool) -> list[tuple[list[str], int]]:
    """Settings to change, as overrides, so that a step should fit into `room` bytes, and what it needs then.

    Those that change least come first; of each set of settings the mildest change. None where nothing fits,
    or nothing is known of the model. on_gpu: whether offloading moves anything.
    """
    now = memory(plan)
    if now.activations is None:
        return []
    limit = SAFE_SHARE * min(room, now.on_device)  # what has failed needs more than was estimated
    found: dict[frozenset[str], tuple[list[str], int]] = {}
    for micro, layout in sorted(_candidates(plan, on_gpu), key=lambda each: _cost(plan, *each)):
        changes = _changes(plan, micro, layout)
        key = frozenset(change.partition("=")[0] for change in changes)
        if not changes or any(known <= key for known in found):
            continue
        if (size := memory(plan, micro, layout).on_device) <= limit:
            found[key] = changes, size
    return list(found.values())[:MOST]


def _candidates(plan: Plan, on_gpu: bool) -> Iterator[tuple[int, Layout]]:
    layout, rows = plan.layout, plan.rows_per_rank
    micros = [n for n in divisors(rows) if n <= plan.micro_batch_size]
    levels: tuple[Recompute, ...] = get_args(Recompute)
    levels = levels[levels.index(layout.activation_checkpointing) :]
    native = plan.config.parallel.engine == "native" or layout.expert_parallel_size > 1
    last = layout.zero_stage if layout.replicas == 1 else 2 if native else 3
    stages = range(layout.zero_stage, max(last, layout.zero_stage) + 1)
    for micro, level, stage in product(micros, levels, stages):
        engine = layout.engine if native or stage < 2 else "deepspeed"
        changed = replace(layout, activation_checkpointing=level, zero_stage=stage, engine=engine)
        yield micro, changed
        if on_gpu and stage and not native and layout.offload == "none":
            yield micro, replace(changed, offload="cpu", engine="deepspeed")


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
