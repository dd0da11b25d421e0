"""Makers of parts that worker processes can import."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import RunFault, UserError
from llmkit.stopping import SIGNALS


@dataclass(frozen=True)
class Maker:
    """Writes a file a part; some parts go wrong, each in the way that its name says."""

    folder: Path
    faults: dict[int, str]

    def make(self, part: int) -> None:
        match self.faults.get(part):
            case "user":
                raise UserError(f"part {part} is the user's mistake")
            case "run":
                raise RunFault(f"part {part} cannot be read")
            case "disk":
                raise OSError(28, "No space left on device")
            case "bug":
                raise ZeroDivisionError(f"part {part}")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "told":
                for number in SIGNALS:
                    os.kill(os.getpid(), number)
            case "waits":
                (self.folder / "go").read_text()
        (self.folder / str(part)).write_text(str(os.getpid()))
