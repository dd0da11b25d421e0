"""What ranks of tests/drills/test_watchdog.py do: `llmkit train`, where one of two dies, hangs or is slow."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmkit.cli import main
from llmkit.engine.native import NativeEngine
from tests.drills.end_cases import at_step
from tests.limits import HANG

STEP = 8
"""In which it happens."""
SLOWER = 0.2
"""Seconds that each step of a slow rank takes longer."""


def hold_the_gil() -> None:
    """In C, as a library that forgets to let go of it; each signal only interrupts one reading."""
    reader, _writer = os.pipe()
    while True:
        ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)


ACTS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "gil": hold_the_gil,
    "sleeps": lambda: time.sleep(HANG),
    "another exchange": lambda: dist.recv(torch.zeros(3), src=0),
}


def slow_down(patch: pytest.MonkeyPatch) -> None:
    """Each step of this rank takes longer, by itself; the run is stopped once that is on record."""
    train_step = NativeEngine.train_step

    def slow(self: NativeEngine, *arguments: Any) -> Any:
        time.sleep(SLOWER)
        if "straggler" in Path("runs/d13/events.jsonl").read_text():
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, *arguments)

    patch.setattr(NativeEngine, "train_step", slow)


def watched(folder: str, ports: list[int], cases: list[dict[str, Any]]) -> dict[str, Any]:
    """One rank of the case to which it belongs: each has two of the processes of this launch.

    A case: its name, overrides, the `act`, and the rank that does it.
    """
    case, rank = cases[int(os.environ["RANK"]) // 2], int(os.environ["RANK"]) % 2
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_PORT": str(ports[cases.index(case)]), "END_FILE": f"{folder}/{case['name']}.json"}
    os.chdir(folder)
    errors = io.StringIO()

    def act() -> None:
        Path(f"{case['name']}.began").write_text(str(time.time()))
        ACTS[case["act"]]()

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        if rank == case["rank"] and case["act"] == "slow":
            Path(f"{case['name']}.began").write_text(str(time.time()))
            slow_down(patch)
        elif rank == case["rank"]:
            at_step(patch, STEP, act)
        code = main(["train", "tiny.yaml", f"run.name={case['name']}", *case["overrides"]])
    return {"code": code, "errors": errors.getvalue()}
