"""The loss of each source in whole runs: what its rows cost, over resumes too."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.config.load import load
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.loop.source_losses import SourceLosses
from llmkit.train import train
from tests.program import rows

TWO = (
    "data.sources=[{name: corpus, type: text, path: corpus}, "
    "{name: numbers, type: text, path: numbers, weight: 2}]",
    "train.max_steps=9", "monitor.log_every=4", "train.micro_batch_size=2", "checkpoint.every_steps=4",
)  # fmt: skip


def test_its_state_is_exact_and_known_by_name() -> None:
    losses, later = (SourceLosses(names, torch.device("cpu")) for names in (["a", "b"], ["c", "b"]))
    assert losses.state() == {} and losses.take() is None
    losses.add(torch.tensor([[0.1, 3.0], [1 / 3, 7.0]], dtype=torch.float64))
    later.load_state(losses.state())
    later.add(torch.tensor([[0.0, 0.0], [0.2, 1.0]], dtype=torch.float64))
    sums = later.take()
    assert sums is not None and later.take() is None
    assert later.columns(sums.flatten().tolist()) == {"loss/b": (1 / 3 + 0.2) / 8.0}


class Watch(Hook):
    """Sums up itself what each step gives."""

    def __init__(self, stop: int = 0) -> None:
        self.steps: dict[int, Any] = {}
        self.stop = stop

    def after_step(self, t: Any, result: Any) -> None:
        self.steps[t.state.step] = result

    def request(self, t: Any) -> Request | None:
        return Request(stop="enough") if t.state.step == self.stop else None


def fit(hook: Hook, *settings: str) -> int:
    loaded = load("tiny.yaml", (*TWO, *settings))
    return train(loaded, Options(), started=time.monotonic(), environment={}, hooks=[hook])


@pytest.fixture
def numbers(project: Path) -> Path:
    """A second source, whose text is far easier to learn."""
    (project / "numbers").mkdir()
    for number in range(30):
        (project / f"numbers/{number}.txt").write_text("0123456789" * 40)
    return project


def test_rows_of_each_source_are_told_apart_over_a_resume(numbers: Path) -> None:
    watch = Watch()
    assert fit(watch, "run.name=straight") == 0
    straight = rows(numbers / "runs/straight")
    training = [row for row in straight if "loss" in row]
    assert [row["step"] for row in training] == [1, 4, 8, 9]
    for first, row in zip((1, 2, 5, 9), training, strict=True):
        parts = torch.stack([watch.steps[step].by_source for step in range(first, row["step"] + 1)])
        sums = dict(zip(("loss/corpus", "loss/numbers"), parts.sum(0).tolist(), strict=True))
        wanted = {name: nats / targets for name, (nats, targets) in sums.items() if targets}
        assert {name: row[name] for name in row if name.startswith("loss/")} == pytest.approx(wanted)
        nats, targets = (sum(each) for each in zip(*sums.values(), strict=True))
        assert nats / targets == pytest.approx(row["loss_mean"])
        assert targets == 128 * (row["step"] - first + 1)
    assert training[-1]["loss/numbers"] < training[-1]["loss/corpus"]

    assert fit(Watch(stop=6)) == 75
    assert fit(Watch()) == 0
    again = [row for row in rows(numbers / "runs/tiny") if "loss" in row]
    names = ("step", "loss", "loss/corpus", "loss/numbers")
    assert [[row.get(name) for name in names] for row in again] == [
        [row.get(name) for name in names] for row in training
    ]


def test_held_out_loss_is_that_of_all_sources_and_positions_together(numbers: Path) -> None:
    assert fit(Watch(), "data.sequence_length=48") == 0
    (row,) = [row for row in rows(numbers / "runs/tiny") if "eval_loss" in row]
    assert row["eval_loss/numbers"] < row["eval_loss"] < row["eval_loss/corpus"]
    for name in ("corpus", "numbers"):  # bytes are tokens, and each document has an end more
        bits = row[f"eval_loss/{name}"] / math.log(2)
        assert row[f"eval_bits_per_byte/{name}"] == pytest.approx(bits, rel=0.03)
    low, _, high = sorted(row[f"eval_loss_at/{part}"] for part in ("0-15", "16-31", "32-47"))
    assert low < row["eval_loss"] < high
