"""Checkpoints of a run by name: RUN@best, RUN@1000, RUN@step-1000."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmkit.checkpoint.keeping import read_best, step_of
from llmkit.checkpoint.read import folders
from llmkit.errors import UserError

SHOWN = 10
"""Steps that a message lists at most."""
_STEP = re.compile(r"(?:step-)?(\d{1,15})", re.ASCII)


def split_name(text: str) -> tuple[str, str]:
    """The run and the name of a checkpoint in RUN@NAME; no name ("") in what is not written so."""
    run, at, which = text.rpartition("@")
    return (run, which) if at and run and (which == "best" or _STEP.fullmatch(which)) else (text, "")


def named(path: Path) -> Path:
    """The folder that a path names: of RUN@best, RUN@1000 or RUN@step-1000 that of the checkpoint.

    RUN is a run folder or a folder of checkpoints. A path that exists is taken as it is. Raises UserError
    where the run has no such checkpoint, and Damaged where it is not known which one is the best.
    """
    run, which = split_name(str(path))
    if not which or os.path.lexists(path):
        other = "" if os.path.lexists(path) else run.rpartition("@")[0]
        if other and Path(other).is_dir():
            raise UserError(f"{path}: behind @ stands best or a step, as in {other}@best or {other}@1000")
        return path
    below = Path(run, "checkpoints")
    root = below if below.is_dir() else Path(run)
    there = {step_of(folder): folder for folder in folders(root)}
    if not there:
        raise UserError(f"{path}: there is no checkpoint in {root}; name a run folder that has one before @")
    listed = ", ".join(str(step) for step in list(there)[-SHOWN:])
    steps = f"{'... ' * (len(there) > SHOWN)}{listed}"
    if which == "best":
        best = read_best(root)
        if best is None:
            raise UserError(
                f"{path}: no checkpoint in {root} is marked as the best; name a step instead, {run}@N with N "
                f"of {steps}"
            )
        step = best.step
    else:
        found = _STEP.fullmatch(which)
        assert found is not None, which
        step = int(found[1])
    if step not in there:
        raise UserError(f"{path}: {root} has no checkpoint of step {step}, but of {steps}; name one of these")
    return there[step]
