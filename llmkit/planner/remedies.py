"""What would make a model fit that fits into no layout of a fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from llmkit.config.load import Loaded
from llmkit.config.memory import show_bytes
from llmkit.config.mistakes import listed
from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.search import MICRO_BATCH, SPARE, Found, Ground, candidate
from llmkit.planner import words

MOST_NODES = 2048
"""More are not tried."""


def remedies(loaded: Loaded, ground: Ground, found: Found) -> str:
    """The message: what is needed at least, of what there is, and with which nodes or devices it fits."""
    nearest, fleet = found.nearest, ground.fleet
    assert nearest is not None
    memory = nearest.memory
    parts = ", ".join(f"{term.name} {show_bytes(term.value)}" for term in memory.device if term.value)
    there = f"{show_bytes(fleet.device.memory)} of the {fleet.device.name} ({SPARE:.0%} stay free)"
    ways = []
    if not nearest.host_fits:
        host = f"{show_bytes(memory.host_bytes)} of {show_bytes(memory.host_available)}"
        there += f", and {host} of its part of the host's memory"
        if nearest.device_fits:
            missing = memory.missing(SPARE)[1] / (1.0 - SPARE)
            node = (memory.host_available + missing) * fleet.devices_per_node
            ways.append(f"{show_bytes(node)} of host memory for each node (--host-memory)")
    ways += [*_more_nodes(loaded, ground, found), *_larger_devices(loaded, ground, found)]
    ways.append("a smaller model, or shorter rows (data.sequence_length)")
    return (
        f"plan: {words.model(nearest.plan)}: no layout fits on {words.fleet(fleet)}: the nearest one needs "
        f"{show_bytes(memory.device_bytes)} a process ({words.layout(nearest.plan)}: {parts}) of {there}; it "
        f"would take {' or '.join(ways)}"
    )


def _more_nodes(loaded: Loaded, ground: Ground, found: Found) -> Iterator[str]:
    fleet = ground.fleet
    nodes = fleet.nodes * 2
    while nodes <= MOST_NODES:
        if _fits(loaded, replace(ground, fleet=replace(fleet, nodes=nodes)), found):
            yield f"{nodes} nodes of {fleet.devices_per_node}"
            return
        nodes *= 2


def _larger_devices(loaded: Loaded, ground: Ground, found: Found) -> Iterator[str]:
    """Of the devices of the table those with the least memory that is enough."""
    fleet = ground.fleet
    larger = [each for each in Hardware().devices.values() if each.memory > fleet.device.memory]
    for device in sorted(larger, key=lambda each: each.memory):
        if _fits(loaded, replace(ground, fleet=replace(fleet, device=device)), found):
            same = [each.name for each in larger if each.memory == device.memory]
            yield f"{listed(same)} ({show_bytes(device.memory)})"
            return


def _fits(loaded: Loaded, ground: Ground, found: Found) -> bool:
    """Whether one of the layouts that need least memory fits on another fleet."""
    assert found.nearest is not None
    settings = found.nearest.settings
    stages, offloads = {3, settings["parallel.zero_stage"]}, {"none", settings["parallel.offload"]}
    for stage, offload in product(stages, offloads):
        engine = "deepspeed" if stage == 3 or offload != "none" else settings["parallel.engine"]
        changed = {"zero_stage": stage, "engine": engine, "offload": offload}
        if engine == "deepspeed":  # which knows of no experts that a rank does not hold
            changed["expert_parallel_size"] = 1
        layout = settings | {f"parallel.{name}": value for name, value in changed.items()} | {MICRO_BATCH: 1}
        try:
            if candidate(loaded, ground, layout).fits:
                return True
        except UserError:
            continue
    return False
