"""What the processes of the test of plugins that differ run."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from llmkit.cli import main


def train(folder: str) -> list:
    """Exit code and output of a run whose plugin is another one on each rank."""
    rank = os.environ["RANK"]
    mine = Path(folder) / f"rank-{rank}"
    mine.mkdir()
    (mine / "their_plugin.py").write_text(f"RANK = {rank}\n")
    (mine / "tiny.yaml").write_text((Path(folder) / "tiny.yaml").read_text())
    os.chdir(mine)
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        code = main(["train", "tiny.yaml", f"run.dir={folder}/runs", "plugins=[their_plugin]"])
    return [code, shown.getvalue()]
