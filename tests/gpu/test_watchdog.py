"""A device that does not answer: the process that waits for it is named and ended."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tests.limits import HANG
from tests.program import make_project, recorded, start

PLUGIN = """\
import time
import torch
import llmkit
from llmkit.loop.scalars import Scalars

class Hangs(llmkit.Hook):
    name = "hangs"

    def after_step(self, t, result):
        if t.state.step != 8:
            return
        if t.mesh.device.type == "cuda":
            torch.cuda._sleep(10**15)  # cycles: days
        else:
            Scalars.read = lambda self: time.sleep(10**6)

llmkit.register("hook", "hangs")(Hangs)
"""


def test_a_device_that_never_ends_a_step_is_found_and_the_process_ended(
    device: torch.device, tmp_path: Path
) -> None:
    """On a GPU its main thread waits in CUDA, where no Python runs: it is killed."""
    make_project(tmp_path)
    (tmp_path / "hangs.py").write_text(PLUGIN)
    process = start(
        tmp_path, "train", "tiny.yaml", "plugins=[hangs]", "hooks=[{type: hangs}]", "train.max_steps=4000",
        "faults.watchdog=true", "faults.max_step_seconds=5",
    )  # fmt: skip
    try:
        code = process.wait(HANG)
    finally:
        process.kill()
    assert code in ((1, -9) if device.type == "cuda" else (1,)), process.output()
    (event,) = recorded("hung_rank", tmp_path / "runs" / "tiny")
    assert event["step"] in (8, 9) and event["ranks"] == [0]
    stack = (tmp_path / "runs" / "tiny" / event["stacks"] / "rank-00000.txt").read_text()
    assert "in fit" in stack and os.fspath(tmp_path / "runs" / "tiny" / "logs") in process.output()
