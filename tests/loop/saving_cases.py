"""Runs of several ranks that save beside training, and that wait: one layout after the other."""

from __future__ import annotations

import contextlib

from llmkit.engine.deepspeed import import_deepspeed
from tests.loop.rollback_cases import run


def layouts(folder: str, cases: dict[str, list[str]]) -> list[int]:
    """Each case by its name, twice; the exit codes."""
    import_deepspeed()  # before any process group
    common = ["train.max_steps=4", "checkpoint.every_steps=2", "run.deterministic=false"]
    with contextlib.chdir(folder):
        return [
            run(f"{name}-{kind}", [*common, *overrides, f"checkpoint.background={value}"])
            for name, overrides in cases.items()
            for kind, value in (("waits", "false"), ("beside", "true"))
        ]
