"""The command line of `llmkit inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.command_line import CommandParser
from llmkit.inspect.options import add_inspect_command


def test_options():
    parser = CommandParser()
    add_inspect_command(parser.add_subparsers())
    found = parser.parse_args(["inspect", "runs/demo", "--prompt", "a b", "--output", "x.html"])
    assert (found.run, found.prompt, found.output) == ("runs/demo", "a b", Path("x.html"))
    assert (found.control_tokens, found.force, found.precision) == (False, False, "auto")
    with pytest.raises(SystemExit):
        parser.parse_args(["inspect", "runs/demo", "--prompt", "a"])
