"""What is measured of layers, in whole runs: its rows and items, and that it changes nothing."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.load import load
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.loop.step_details import layer_columns, output_columns
from llmkit.monitor.media import read_media
from llmkit.train import train
from tests.program import recorded, rows, timeless


def fit(*settings: str, hooks: tuple[Hook, ...] = ()) -> int:
    loaded = load("tiny.yaml", settings)
    return train(loaded, Options(), started=time.monotonic(), environment={}, hooks=list(hooks))


def test_columns_of_layers_follow_from_their_sums() -> None:
    sums = [[9.0, 4.0, 1.0], [16.0, 12.0, 8.0], [math.nan] * 3, [0.0, 0.0, 0.0]]
    found = layer_columns(["a", "b"], sums[:2])
    assert found["grad_norm/a"] == 3.0 and found["weight_norm/b"] == math.sqrt(12.0)
    assert found["update_ratio/a"] == 0.5 and found["update_ratio"] == math.sqrt(9.0 / 16.0)
    assert all(map(math.isnan, layer_columns(["a"], sums[2:3]).values()))
    assert math.isnan(layer_columns(["a"], sums[3:])["update_ratio/a"])
    columns = output_columns(["x", "head"], [[8.0, 2.0, 2.5], [0.0, 0.0, 0.0]])
    assert columns == {"activation_rms/x": 2.0, "activation_max/x": 2.5}


SETTINGS = ("train.max_steps=9", "data.sequence_length=40", "train.micro_batch_size=2")


class Stop(Hook):
    """Stops the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def request(self, t: Any) -> Request | None:
        return Request(stop="enough") if t.state.step == self.step else None


def test_layers_are_measured_every_so_many_steps_and_training_is_the_same(project: Path) -> None:
    """With dropout, and over a resume."""
    assert fit(*SETTINGS, "run.name=plain", "monitor.statistics_every=0") == 0
    assert fit(*SETTINGS, "run.name=straight", "monitor.statistics_every=3") == 0
    straight = rows(Path("runs/straight"))
    extra = [row for row in straight if "update_ratio" in row]
    assert [row["step"] for row in extra] == [3, 6, 9]
    names = {name for row in rows(Path("runs/plain")) for name in row}
    assert not any(name.startswith(("update_ratio", "loss_at")) for name in names)
    rest = [row for row in timeless(Path("runs/straight")) if row.keys() > {"step"}]
    assert rest == timeless(Path("runs/plain"))
    layers = {"embedding", "blocks.0", "blocks.1", "norm"}
    for row in extra:
        for kind, of in (("grad_norm", layers), ("weight_norm", layers), ("update_ratio", layers)):
            assert {name for name in row if name.startswith(f"{kind}/")} == {f"{kind}/{each}" for each in of}
        assert {name for name in row if name.startswith("activation_rms/")} == {
            f"activation_rms/{each}" for each in layers
        }
        norm = math.sqrt(sum(row[f"grad_norm/{each}"] ** 2 for each in layers))
        training = next(each for each in straight if each["step"] == row["step"] and "loss" in each)
        assert norm == pytest.approx(training["grad_norm"], rel=1e-5)
        low, high = row["loss_at/0-15"], row["loss_at/16-31"]
        loss = (16 * low + 16 * high + 8 * row["loss_at/32-39"]) / 40
        assert loss == pytest.approx(training["loss"], rel=1e-5)
        assert 0.0 < row["update_ratio"] < 0.3

    assert fit(*SETTINGS, "monitor.statistics_every=3", hooks=(Stop(6),)) == 75
    assert fit(*SETTINGS, "monitor.statistics_every=3") == 0
    assert [row for row in rows(Path("runs/tiny")) if "update_ratio" in row] == extra
    items = read_media(Path("runs/straight"))
    assert read_media(Path("runs/tiny")) == items
    assert [(item["step"], item["name"]) for item in items] == [
        (step, f"gradients/{layer}")
        for step in (3, 6, 9)
        for layer in ("embedding", "blocks.0", "blocks.1", "norm")
    ]
    assert all(sum(item["counts"]) > 0 and len(item["edges"]) == len(item["counts"]) + 1 for item in items)


class Jump(Hook):
    """Multiplies the head by a large number before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, t: Any, result: Any) -> None:
        if t.state.step == self.step - 1:
            t.engine.model.head.weight.data.mul_(30.0)


def test_a_jump_of_the_loss_is_an_event_and_nothing_else_is(project: Path) -> None:
    settings = ("train.max_steps=30", "monitor.spike_window=12", "checkpoint.every_steps=0")
    assert fit(*settings, "run.name=plain") == 0
    assert fit(*settings, hooks=(Jump(25),)) == 0
    assert recorded("loss_spike", Path("runs/plain")) == []
    (spike,) = recorded("loss_spike")
    assert (spike["step"], spike["of"]) == (25, "loss")
    (row,) = [row for row in rows(Path("runs/tiny")) if row["step"] == 25]
    assert spike["value"] == row["loss"] and spike["z"] > 6
