"""What a run has recorded about its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkit.checkpoint.read import load
from llmkit.checkpoints.recorded import Recorded, shown_time
from tests.program import rows

ROOT = Path("runs/tiny/checkpoints")


def test_losses_of_a_step_are_those_of_the_metrics(project: Path) -> None:
    recorded = Recorded(Path("runs/tiny"))
    wanted = {row["step"]: row["loss_mean"] for row in rows(Path("runs/tiny")) if row.get("loss_mean")}
    assert recorded.loss(6) == pytest.approx(wanted[6]) and recorded.loss(3) == pytest.approx(wanted[3])
    assert recorded.heldout(8) is not None and recorded.heldout(5) is None and recorded.loss(99) is None


def test_outside_of_a_run_only_the_checkpoint_itself_tells(project: Path) -> None:
    recorded, checkpoint = Recorded(None), load(ROOT / "step-00000008")
    assert recorded.heldout(8) is None and recorded.loss(8) is None
    checkpoint.state["progress"] |= {"evaluated_step": 8, "eval_loss": 2.5}
    assert recorded.heldout(8, checkpoint) == 2.5
    checkpoint.state["progress"]["evaluated_step"] = 6
    assert recorded.heldout(8, checkpoint) is None
    os.utime(ROOT / "step-00000008/manifest.json", (1e9, 1e9))
    assert recorded.saved(ROOT / "step-00000008") == 1e9 and shown_time(1e9) == "2001-09-09T01:46:40+00:00"
    assert recorded.saved(Path("nowhere")) is None and shown_time(None) is None
