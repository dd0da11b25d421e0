"""The command lines of `llmkit top` and `llmkit runs`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse

from llmkit.command_line import Commands, add_json

SORTS = ("name", "state", "step", "loss", "heldout", "speed", "layout", "age", "size")
SHOWN_AS = {"held-out": "heldout", "tokens/s": "speed"}
"""Headings of the table -> the columns that they stand for."""


def add_top_command(commands: Commands) -> None:
    """Adds `llmkit top`."""
    top = commands.add_parser("top", help="follow runs from another terminal, by their files")
    top.add_argument("runs", metavar="RUN", nargs="+", help="a run folder; it is only read")
    top.add_argument("--once", action="store_true", help="print how they stand, and end")
    add_json(top, "print how they stand as a JSON list, and end")
    top.set_defaults(command=_top, parser=top)


def add_runs_command(commands: Commands) -> None:
    """Adds `llmkit runs`."""
    runs = commands.add_parser("runs", help="a table of the runs in a folder")
    runs.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="default: runs")
    runs.add_argument(
        "--sort", type=lambda name: SHOWN_AS.get(name, name), choices=SORTS, default="age",
        help="the column to sort by, also by its heading: held-out, tokens/s; default: age",
    )  # fmt: skip
    add_json(runs, "print a JSON list instead")
    runs.add_argument("--size", action="store_true", help="also the disk space of each; takes longer")
    runs.set_defaults(command=_runs, parser=runs)


def _top(options: argparse.Namespace, started: float) -> int:
    from llmkit.watch.top import top_command

    return top_command(options)


def _runs(options: argparse.Namespace, started: float) -> int:
    from llmkit.watch.runs import runs_command

    return runs_command(options)
