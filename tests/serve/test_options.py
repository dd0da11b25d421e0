"""The command line of `llmkit serve`."""

from __future__ import annotations

import pytest

from llmkit.command_line import CommandParser
from llmkit.serve.options import add_serve_command


def test_options():
    parser = CommandParser()
    add_serve_command(parser.add_subparsers())
    found = parser.parse_args(["serve", "runs/demo"])
    assert (found.run, found.host, found.port, found.max_batch) == ("runs/demo", "127.0.0.1", 8000, 8)
    assert (found.model_name, found.max_tokens, found.api_key_file) == (None, None, None)
    for wrong in (["--port", "70000"], ["--max-tokens", "0"], ["--max-batch", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(["serve", "runs/demo", *wrong])
