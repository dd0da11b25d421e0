"""What a check is to look at."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scope:
    """Handed to the process that runs the checks, as JSON.

    folder: which is to hold runs. expected_gpus: of this node, None = any number. config: a configuration
    that all nodes must see alike, "" = none. meeting: a random name that the nodes of one check share, by
    which they find each other's files in `folder`; "" = this machine alone. full: measure for longer, and
    compile. first: the node that all must reach, "" = that of MASTER_ADDR, if any. seconds: for all checks.
    """

    folder: str
    expected_gpus: int | None = None
    config: str = ""
    meeting: str = ""
    full: bool = False
    first: str = ""
    seconds: float = 60.0

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`; `Scope(**content)` reads it."""
        return asdict(self)


def folder_of_runs(run_folder: str | None) -> str:
    """The folder to check: the run's, else `runs` where it is there, else the working directory."""
    if run_folder is not None:
        return os.path.abspath(run_folder)
    return str(Path("runs").absolute() if Path("runs").is_dir() else Path.cwd())
