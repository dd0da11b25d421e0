"""What the ranks of tests of this folder do: commands of the pairs' project, one world after another."""

from __future__ import annotations

import os

from llmkit.cli import main


def commands(folder: str, ports: list[int], lines: list[list[str]]) -> list[int]:
    """Exit codes of commands that all ranks run together, in the folder of the project."""
    os.chdir(folder)
    codes = []
    for port, line in zip(ports, lines, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        codes.append(main(line))
    return codes
