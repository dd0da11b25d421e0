"""The command on the processes of a launch, with few cases; see test_command.py."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

from llmkit.parity import command, compare
from llmkit.parity.cases import Case

CASES = [
    Case("modern", 0, tensor, data, False, 1, "none", False, "fp32", "none")
    for tensor, data in ((1, 2), (2, 1), (1, 1))
]


def run() -> list[Any]:
    """[exit code, what was printed]."""
    printed = io.StringIO()
    strict = {**compare.FP32, "weight": 0.0}  # no two layouts are that close
    with (
        patch.object(command, "covering", lambda strength: CASES),
        patch.object(command, "FURTHER", []),
        patch.object(compare, "FP32", strict),
        redirect_stdout(printed),
    ):
        code = command.parity_command(False, os.environ)
    return [code, printed.getvalue()]
