"""A run that is stopped in its second epoch goes on with the rows that it would have read, in their order."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from tests.program import at_step, timeless, train

SOURCE = {"name": "web", "type": "jsonl", "path": "few.jsonl", "live": True}


@pytest.mark.drill(
    "D29",
    injection="SIGTERM in the second epoch of a source that two worker processes tokenize, and again later",
    expected="the rows and losses of a run that nothing disturbed, in their order",
)
def test_a_stop_in_the_second_epoch_changes_no_row(
    project: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[str, float | str, str], None]
) -> None:
    texts = [f"{number} " + " ".join(f"word{number * each}" for each in range(12)) for number in range(30)]
    Path("few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = [
        f"data.sources=[{json.dumps(SOURCE)}]", "data.workers=2", "data.validation_fraction=0",
        "train.max_steps=60", "monitor.log_samples=true", "checkpoint.every_steps=0",
    ]  # fmt: skip
    assert train("run.name=straight", *settings) == 0
    for stop in (30, 8):
        with monkeypatch.context() as patch:
            at_step(patch, stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert train("run.name=stopped", *settings) == 75
    assert open_checkpoint(Path("runs/stopped")).step == 38
    assert train("run.name=stopped", *settings) == 0

    straight, stopped = Path("runs/straight"), Path("runs/stopped")
    epoch = sum(len(text) + 1 for text in texts) / (4 * 32)  # in steps: a token a byte, and one a document
    assert epoch < 30 and 38 < 2 * epoch < 60, "the stops are in the second one, the end is in the third"
    assert timeless(stopped) == timeless(straight)
    (one,), (other,) = ([*(run / "samples").glob("rank-*.jsonl")] for run in (straight, stopped))
    ours, theirs = one.read_text().splitlines(), other.read_text().splitlines()
    measured("stopped after", 30 / epoch, "epochs")
    differ = sum(a != b for a, b in zip_longest(ours, theirs))
    measured("rows that differ", differ, f"of {len(ours)}")
    assert ours == theirs
