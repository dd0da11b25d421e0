"""The command line of `llmkit reference`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os

from llmkit.command_line import Commands, add_config


def add_reference_command(commands: Commands) -> None:
    """Adds `llmkit reference`."""
    reference = commands.add_parser(
        "reference", help="what the reference model gives for pairs of answers, before training on them"
    )
    add_config(reference)
    reference.set_defaults(command=_reference, parser=reference)


def _reference(options: argparse.Namespace, started: float) -> int:
    from llmkit.config.load import load
    from llmkit.preference.command import reference_command

    return reference_command(load(options.config, options.overrides), os.environ)
