"""The command line of `llmkit launch-files`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmkit.command_line import Commands, add_json


def add_launch_files_command(commands: Commands) -> None:
    """Adds `llmkit launch-files`."""
    parser = commands.add_parser(
        "launch-files", help="write configurations, launch files and SLURM's scripts that come with llmkit"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="gets configs/, launch/ and slurm/")
    add_json(parser)
    parser.set_defaults(command=_launch_files, parser=parser)


def _launch_files(options: argparse.Namespace, started: float) -> int:
    from llmkit.shipped.command import launch_files_command

    return launch_files_command(options.folder, as_json=options.json)
