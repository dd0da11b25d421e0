"""Rows of steps, on a clock whose time is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmkit.engine.base import StepResult, without_targets
from llmkit.engine.layer_statistics import LayerStatistics
from llmkit.engine.layer_sums import COLUMNS
from llmkit.engine.parts import StepParts
from llmkit.errors import RunFault
from llmkit.loop.phases import Phases
from llmkit.loop.recorder import Recorder
from llmkit.loop.scalars import Scalars
from llmkit.loop.source_losses import SourceLosses
from llmkit.loop.state import TrainState
from llmkit.loop.step_details import StepDetails
from llmkit.loop.step_log import StepLog
from llmkit.loop.step_times import Speed
from llmkit.monitor.goodput import Ledger
from llmkit.monitor.hardware import peak_memory_gib
from llmkit.monitor.spikes import Spike, SpikeDetector
from llmkit.parallel.mesh import Mesh

TOKENS, FLOPS, PEAK, DEVICES = 128, 1000.0, 64_000.0, 2


class Parts(StepParts):
    """Parts of a step of known durations."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds: Any = seconds

    def read(self) -> Any:
        return self.seconds


class Steps:
    """A run of steps of known durations. `waits`, `computes`, `saves`: seconds of each."""

    def __init__(self, max_skipped: int = 3) -> None:
        self.now = 0.0
        self.rows: list[dict[str, Any]] = []
        self.items: list[tuple[int, str]] = []
        self.spikes: list[Spike] = []
        self.state, self.recorder = TrainState(max_steps=100), Recorder(Mesh())
        self.phases = Phases(lambda: self.now)
        self.log = StepLog(
            self.state, torch.device("cpu"), self.phases, self.recorder,
            Speed(TOKENS, FLOPS, 0.0, PEAK, "measured", DEVICES), [Ledger(self.phases.totals).columns],
            self.rows.append, max_skipped, lambda: None,
            StepDetails(
                SourceLosses(["web", "books", "code"], torch.device("cpu")), SpikeDetector(10, 6.0), 32,
                self.rows.append, lambda item, step: self.items.append((step, item["name"])),
                self.spikes.append,
            ),
        )  # fmt: skip

    def spend(self, phase: Any, seconds: float) -> None:
        with self.phases.span(phase):
            self.now += seconds

    def step(
        self, row_due: bool = False, targets: int = TOKENS, loss: float = 2.0, skipped: float = 0.0,
        waits: float = 0.0, computes: float = 1.0, saves: float = 0.0, compiles: float = 0.0,
        parts: dict[str, float] | None = None, by_source: list[list[float]] | None = None,
        layers: LayerStatistics | None = None, **extras: float,
    ) -> None:  # fmt: skip
        self.spend("data", waits)
        self.spend("step", computes)
        if compiles:
            self.spend("compile", compiles)
        self.state.step += 1
        self.state.tokens += targets
        result = without_targets(torch.device("cpu"))
        if targets:
            total = torch.tensor(loss * targets, dtype=torch.float64)
            sums = {name: torch.tensor(value * targets) for name, value in extras.items()}
            result = StepResult(
                total, targets, torch.tensor(0.5), torch.tensor(skipped), sums, parts and Parts(parts)
            )
        if by_source is not None:
            result = result._replace(by_source=torch.tensor(by_source, dtype=torch.float64), layers=layers)
        self.log.after_step(result, 0.1, row_due)
        self.spend("save", saves)


def test_the_columns_of_time_follow_from_the_clock() -> None:
    run = Steps()
    run.spend("start", 1000.0)
    run.step(row_due=True, computes=500.0)  # the first step compiles: it counts nowhere
    run.step(waits=0.5, computes=1.5, saves=300.0)
    run.step(waits=1.5, computes=2.5)
    run.spend("evaluate", 700.0)
    run.step(row_due=True, waits=1.0, computes=2.0)
    run.log.flush()
    first, second = run.rows
    for column in ("step_seconds", "tokens_per_second", "data_seconds", "mfu"):
        assert first[column] is None
    assert second["step_seconds"] == pytest.approx(3.0)  # (2 + 4 + 3) / 3
    assert second["data_seconds"] == pytest.approx(1.0)
    assert second["tokens_per_second"] == pytest.approx(3 * TOKENS / 9.0)
    assert second["mfu"] == pytest.approx(3 * TOKENS / 9.0 * FLOPS / (PEAK * DEVICES))
    assert second["mfu_peak"] == "measured"


def test_losses_of_sources_are_means_over_the_targets_since_the_last_row() -> None:
    run = Steps()
    run.step(row_due=True, by_source=[[4.0, 2.0], [0.0, 0.0], [0.0, 0.0]], extra=1.0)
    run.step(by_source=[[9.0, 3.0], [1.0, 1.0], [0.0, 0.0]], extra=2.0)
    run.step(by_source=[[1.0, 2.0], [float("nan"), 1.0], [0.0, 0.0]], extra=4.0)
    run.step(row_due=True, targets=0)
    run.log.flush()
    first, second = run.rows
    assert first["loss/web"] == 2.0 and "loss/books" not in first and first["extra"] == 1.0
    assert second["loss/web"] == 2.0 and second["loss/books"] != second["loss/books"]
    assert "loss/code" not in second and second["extra"] == 3.0


def test_what_is_measured_of_layers_is_the_row_behind_that_of_its_step() -> None:
    run = Steps()
    sums = torch.arange(2.0 * COLUMNS).view(2, COLUMNS)
    outputs = torch.tensor([[8.0, 2.0, 3.0]])
    layers = LayerStatistics(["a", "b"], sums, ["a"], outputs)
    run.step(row_due=True, by_source=[[4.0, 2.0], [0.0, 0.0], [6.0, 3.0]], layers=layers, extra=7.0)
    run.step(by_source=[[4.0, 2.0], [0.0, 0.0], [6.0, 3.0]], layers=layers, extra=8.0)
    run.log.flush()
    first, behind, second = run.rows
    assert (first["loss/web"], first["loss/code"], first["extra"]) == (2.0, 2.0, 7.0)
    assert behind["step"] == 1 and behind["weight_norm/b"] == (COLUMNS + 1) ** 0.5
    assert (behind["activation_rms/a"], behind["activation_max/a"]) == (2.0, 3.0)
    assert second == {**behind, "step": 2}
    assert run.items == [(step, f"gradients/{layer}") for step in (1, 2) for layer in ("a", "b")]


def test_each_step_is_looked_at_for_a_spike() -> None:
    run = Steps()
    for loss in (*[2.0] * 12, 4.0, 2.0):
        run.step(loss=loss)
    assert [spike.step for spike in run.spikes] == [13] and run.rows == []


def test_a_step_that_computes_nothing_makes_no_speed_and_has_a_row() -> None:
    run = Steps()
    run.step(row_due=True)
    run.step(targets=0, computes=1.0)
    run.step(row_due=True, computes=3.0)
    run.log.flush()
    assert [row["step"] for row in run.rows] == [1, 2, 3]
    assert run.rows[1] | {"loss": None, "grad_norm": None, "no_targets": True} == run.rows[1]
    assert run.rows[2]["tokens_per_second"] == pytest.approx(TOKENS / 4.0)
    assert run.state.no_targets == 1


def test_a_row_has_the_mean_loss_since_the_last_one_and_its_own() -> None:
    run = Steps()
    run.step(row_due=True, loss=4.0)
    for loss in (3.0, 2.0):
        run.step(loss=loss)
    run.step(row_due=True, loss=1.0)
    run.log.flush()
    assert [(row["loss"], row["loss_mean"]) for row in run.rows] == [(4.0, 4.0), (1.0, 2.0)]


def test_recorded_numbers_and_the_models_extras_are_in_the_next_row() -> None:
    run = Steps()
    run.step(row_due=True, balance=1.0)
    run.recorder.record("grad/max", torch.tensor(7.0), reduce="max")
    run.step(balance=2.0)
    run.recorder.record("grad/max", 5.0, reduce="max")
    run.step(row_due=True, balance=4.0)
    run.log.flush()
    assert run.rows[0]["balance"] == pytest.approx(1.0)
    assert "grad/max" not in run.rows[0]
    assert (run.rows[1]["balance"], run.rows[1]["grad/max"]) == (pytest.approx(3.0), 7.0)


def test_rows_are_written_a_step_late() -> None:
    run = Steps()
    run.step(row_due=True)
    assert run.rows == []
    run.step()
    assert [row["step"] for row in run.rows] == [1]


def test_skipped_updates_have_a_row_and_too_many_in_a_row_end_the_run() -> None:
    run = Steps(max_skipped=3)
    run.step(row_due=True)
    for skipped in (1.0, 1.0, 0.0, 1.0, 1.0, 1.0):
        run.step(skipped=skipped, loss=float("nan") if skipped else 2.0)
    with pytest.raises(
        RunFault, match=r"step 7: the gradient was not finite 3 times .* as nothing was saved"
    ):
        run.log.flush()
    assert [row["step"] for row in run.rows if row.get("skipped")] == [2, 3, 5, 6, 7]
    assert run.state.skipped == 5


def test_parts_are_those_of_all_steps_up_to_the_row() -> None:
    run = Steps()
    run.step(row_due=True, parts={"optimizer": 7.0, "communication": 1.0})
    run.step(compiles=60.0, parts={"optimizer": 50.0})  # is no part of time/step
    run.step(targets=0)
    run.step(parts={"optimizer": 0.5, "communication": 0.25})
    run.step(row_due=True, parts={"optimizer": 1.0, "communication": 0.5})
    run.step(row_due=True)  # of an engine that cannot tell
    run.log.flush()
    rows = {row["step"]: row for row in run.rows}
    found = [[rows[step][f"time/{name}"] for name in ("optimizer", "communication")] for step in (1, 5, 6)]
    assert found == [[7.0, 1.0], [1.5, 0.75], [None, None]]


def test_totals_of_a_row_are_those_of_the_whole_run() -> None:
    run = Steps()
    run.spend("start", 10.0)
    run.step(row_due=True, computes=20.0)
    run.step(skipped=1.0, waits=5.0, saves=1.0)
    run.step(row_due=True, computes=3.0)
    run.log.flush()
    first, skipped, last = run.rows
    assert (first["skipped_total"], last["skipped_total"]) == (0, 1)
    assert "skipped_total" not in skipped, "a row that is none of log_every"
    assert (first["elapsed_seconds"], first["goodput"]) == (30.0, pytest.approx(2 / 3, abs=1e-6))
    assert (last["elapsed_seconds"], last["goodput"]) == (40.0, pytest.approx(24 / 40))
    assert [last[f"lost/{name}"] for name in ("start", "data", "save", "other")] == [10.0, 5.0, 1.0, 0.0]
    assert (last["restarts"], last["reserved_memory_gib"]) == (0, None)
    assert last["peak_memory_gib"] == pytest.approx(peak_memory_gib(torch.device("cpu")), rel=0.05)


def test_nothing_of_a_step_is_read_but_its_scalars_and_those_a_step_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors on the meta device have no values: whatever else were read would raise."""
    run, read = Steps(), list[int]()
    monkeypatch.setattr(Scalars, "read", lambda self: read.append(run.state.step) or [256.0, 0.5, 0.0, 7.0])
    scalar = torch.zeros((), device="meta")
    for step in range(1, 5):
        run.spend("step", 1.0)
        run.state.step += 1
        run.recorder.record("mine", scalar)
        parts: Any = Parts({"optimizer": 0.5})
        result = StepResult(scalar.double(), TOKENS, scalar, scalar, {}, parts=parts)
        run.log.after_step(result, 0.1, row_due=True)
        assert read == list(range(2, step + 1)), "of step 1 as step 2 is over, and so on"
    assert [row["loss"] for row in run.rows] == [2.0] * 3
    assert [row["mine"] for row in run.rows] == [7.0] * 3
