"""`llmkit plan`: what fits, how fast, how long and at what cost, before a GPU is touched."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from llmkit.errors import UserError
from llmkit.planner.assumed import Load
from llmkit.planner.compare import compare
from llmkit.planner.document import document
from llmkit.planner.explain import explain
from llmkit.planner.ground import open_place
from llmkit.planner.page import page
from llmkit.planner.study import study
from llmkit.planner.sweep import sweep_command

BOUNDS = {
    "tokens": (1.0, 1e18, "tokens"),
    "loss": (0.1, 20.0, "nats a token"),
    "flops": (1e9, 1e36, "FLOPs"),
    "mtbf": (1e-3, 1e12, "hours"),
    "price_per_hour": (1e-9, 1e9, "of money"),
    "host_memory": (1e-3, 1e9, "GiB"),
    "nodes": (1, 1_000_000, "nodes"),
    "gpus_per_node": (1, 1024, "devices"),
}
"""Options with what they may be: beyond it is a slip of the keyboard."""


def plan_command(options: argparse.Namespace, load: Load, show: Callable[[str], None] = print) -> int:
    """Prints the plan of a configuration; returns 0.

    load: reads a configuration. Raises UserError for mistakes in it or the options, and where nothing fits.
    """
    for name, (low, high, unit) in BOUNDS.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"plan: {option} is {value:g}; it must be {low:g} to {high:g} {unit}")
    if options.svg is not None and not options.sweep:
        raise UserError("plan: --svg goes with --sweep, whose charts it writes")
    place = open_place(options)
    if options.compare is not None:
        lines = compare(load, options, place)
    else:
        found = study(load, options, options.config, options.overrides, place)
        if options.json:
            lines = iter([json.dumps(document(found, options.best), indent=1)])
        elif options.sweep:
            lines = sweep_command(found, options.svg)
        else:
            lines = explain(found) if options.explain else page(found, options.best)
    for line in lines:
        show(line)
    return 0
