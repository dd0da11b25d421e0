"""The command line of `llmkit plan`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse

from llmkit.command_line import add_config, positive
from llmkit.recipes.options import quantity


def add_plan_options(plan: argparse.ArgumentParser) -> None:
    """What `llmkit plan` takes."""
    add_config(plan)
    plan.add_argument("--device", required=True, metavar="NAME", help="such as h100")
    plan.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    plan.add_argument("--gpus-per-node", type=int, metavar="N", help="default: as many as usual")
    plan.add_argument(
        "--hardware", metavar="FILE", help="YAML with devices and links of your own (docs/plan.md)"
    )
    plan.add_argument(
        "--calibration", metavar="FILE", help="of this CPU, by llmkit doctor --calibrate"
    )
    plan.add_argument("--tokens", type=quantity, metavar="T", help="of the run; default: CONFIG's")
    plan.add_argument("--loss", type=quantity, metavar="L", help="to reach, in nats a token, by scaling laws")
    plan.add_argument("--flops", type=quantity, metavar="F", help="to spend, by scaling laws; such as 1e22")
    plan.add_argument("--price-per-hour", type=quantity, metavar="P", help="of a device")
    plan.add_argument(
        "--mtbf", type=quantity, metavar="H", help="hours of a device between failures; default: 50,700"
    )
    plan.add_argument(
        "--host-memory", type=quantity, metavar="GIB", help="of a node; default: 3 times that of its devices"
    )
    plan.add_argument("--best", type=positive, default=5, metavar="N", help="layouts shown; default: 5")
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all of it as JSON")
    form.add_argument("--explain", action="store_true", help="print each formula with its numbers and source")
    form.add_argument(
        "--sweep", action="store_true", help="print scaling up to 16,384 devices, and memory by micro-batch"
    )
    form.add_argument(
        "--compare", nargs=2, metavar=("A", "B"),
        help="two layouts, each a configuration or overrides, as in 'parallel.zero_stage=3'",
    )  # fmt: skip
    plan.add_argument("--svg", metavar="FILE", help="write the charts of --sweep there, too")
