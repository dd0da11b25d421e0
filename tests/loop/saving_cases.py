"""Runs of several ranks that save beside training, and that wait: one layout after the other."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llmkit.engine.deepspeed import import_deepspeed
from llmkit.engine.native import NativeEngine
from llmkit.errors import RunFault
from llmkit.loop import saving
from tests.limits import HANG
from tests.loop.rollback_cases import run

COMMON = ["train.max_steps=4", "checkpoint.every_steps=2", "run.deterministic=false"]


def layouts(folder: str, cases: dict[str, list[str]]) -> list[int]:
    """Each case by its name, twice, then one that fails; the exit codes."""
    import_deepspeed()  # before any process group
    with contextlib.chdir(folder):
        codes = [
            run(f"{name}-{kind}", [*COMMON, *overrides, f"checkpoint.background={value}"])
            for name, overrides in cases.items()
            for kind, value in (("waits", "false"), ("beside", "true"))
        ]
        return [*codes, fails_in_a_save()]


def fails_in_a_save() -> int:
    """Rank 1 fails in step 4, while the checkpoint of step 2 is being written; the exit code."""
    train_step, write, begun = NativeEngine.train_step, saving.write_and_commit, [0]
    in_step_4 = threading.Event()

    def broken(*arguments: Any) -> Any:
        begun[0] += 1
        if begun[0] == 4:
            in_step_4.set()
            if os.environ["RANK"] == "1":
                raise RunFault("rank 1 cannot go on")
        return train_step(*arguments)

    def slow(*arguments: Any, **named: Any) -> Path:
        assert in_step_4.wait(HANG)
        return write(*arguments, **named)

    with patch.object(NativeEngine, "train_step", broken), patch.object(saving, "write_and_commit", slow):
        try:
            return run("fails", [*COMMON, "checkpoint.background=true"])
        except RunFault:
            return 1
