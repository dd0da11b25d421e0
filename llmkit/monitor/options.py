"""The command line of `llmkit sync`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llmkit.command_line import Commands


def add_sync_command(commands: Commands) -> None:
    """Adds `llmkit sync`."""
    parser = commands.add_parser("sync", help="send to Weights & Biases what it has not of a run")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, such as runs/demo")
    parser.set_defaults(command=_sync, parser=parser)


def _sync(options: argparse.Namespace, started: float) -> int:
    from llmkit.monitor.wandb_sync import sync_command

    return sync_command([Path(run) for run in options.runs], os.environ)
