"""SLURM's programs for tests without a cluster: they keep what they are given, and say what they shall."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROGRAM = """\
#!{python} -S
import json, os, sys
folder, name = {folder!r}, os.path.basename(sys.argv[0])
said = json.load(open(os.path.join(folder, name + ".json")))
call = {{"name": name, "arguments": sys.argv[1:], "input": sys.stdin.read(), "environment": dict(os.environ)}}
with open(os.path.join(folder, "calls.jsonl"), "a") as file:
    file.write(json.dumps(call) + chr(10))
given = " ".join(sys.argv[1:])
code, output, errors = next(said[key] for key in said if key in given)
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""


class Programs:
    """sbatch, squeue and so on in a folder of their own, which `path` puts first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @property
    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def say(self, name: str, output: str = "", errors: str = "", code: int = 0, given: str = "") -> None:
        """What a program says. given: only where its arguments have this in them."""
        said = self.folder / f"{name}.json"
        answers = json.loads(said.read_text()) if said.exists() else {}
        answers = {**answers, given: (code, output, errors)}
        said.write_text(json.dumps(dict(sorted(answers.items(), key=lambda item: -len(item[0])))))
        program = self.folder / name
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)

    def calls(self, name: str) -> list[dict[str, Any]]:
        """What a program was given, each time."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["name"] == name]
