"""The command line of `llmkit inspect`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llmkit.checkpoints.run_argument import weights_at
from llmkit.command_line import Commands, add_run, unicode_text


def add_inspect_command(commands: Commands) -> None:
    """Adds `llmkit inspect`."""
    parser = commands.add_parser("inspect", help="write a page on what a model does with a text")
    add_run(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text that the model reads")
    parser.add_argument(
        "--control-tokens", action="store_true", help="control tokens that the prompt spells are meant"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="PAGE.html", help="the page to write")
    parser.add_argument("--force", action="store_true", help="replace a page that is there already")
    parser.set_defaults(command=_inspect, parser=parser)


def _inspect(options: argparse.Namespace, started: float) -> int:
    prompt = unicode_text("inspect", "--prompt", options.prompt)
    run = weights_at(options.run, os.environ)
    from llmkit.inspect.command import inspect_command

    return inspect_command(
        run, prompt, options.output,
        control_tokens=options.control_tokens, force=options.force, precision=options.precision,
        ema=options.ema,
    )  # fmt: skip
