"""A run whose standard output takes nothing is trained to its end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fork_server
from tests.limits import HANG
from tests.program import environment, events, make_project, rows

STEPS = 120
"""Their lines are more than the pipe holds."""


@pytest.mark.drill(
    "D44",
    injection="standard output is a pipe whose reader takes nothing more after step 1",
    expected="the run ends as if somebody read, with its whole record",
)
def test_output_that_nobody_takes_keeps_no_run_waiting(
    tmp_path: Path, measured: Callable[[str, float | str, str], None]
) -> None:
    make_project(tmp_path)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb") as pipe:
        process = fork_server.start(
            "tests.drills.own_errors", ["train", "tiny.yaml", f"train.max_steps={STEPS}"],
            cwd=tmp_path, environment=environment(), log=pipe,
        )  # fmt: skip
        taken = b""
        while f"1/{STEPS}  loss".encode() not in taken:
            taken += reader.read(256)
        assert process.wait(HANG) == 0
        os.set_blocking(reading, False)
        left = reader.read(1 << 20)
    assert b"Try next" not in taken + left, "the pipe took all that there was"
    run = tmp_path / "runs" / "tiny"
    steps = [row["step"] for row in rows(run) if "loss" in row]
    measured("rows missing", STEPS - len(steps), f"of {STEPS}")
    assert steps == list(range(1, STEPS + 1))
    assert events(run)[-1] == "done"
    log = (run / "logs" / "rank-00000.log").read_text()
    assert "standard output takes nothing" in log and "Try next" in log
