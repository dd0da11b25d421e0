"""Evaluations in the course of a run: when they are made, given up, and taken over."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.config.schema import Config, Data, Evaluate, Source
from llmkit.data.eval_loader import EvalLoader
from llmkit.loop.evaluations import take_over_record
from llmkit.loop.state import TrainState
from llmkit.monitor.metrics import MetricsFile
from llmkit.parallel.mesh import Mesh
from tests.program import at_step, events, rows, timeless, train


def during_evaluation(monkeypatch, number: int, act) -> None:
    """Calls `act` after the first batch of evaluation `number`, counted over all runs of this test."""
    batches, begun = EvalLoader.__iter__, [0]

    def watched(self):
        begun[0] += 1
        mine = begun[0]
        for index, batch in enumerate(batches(self)):
            if mine == number and index == 1:
                act()
            yield batch

    monkeypatch.setattr(EvalLoader, "__iter__", watched)


STRAIGHT = ["evaluate.every_steps=4", "train.micro_batch_size=1"]


@pytest.mark.parametrize(
    ("number", "saves", "step"),
    [(1, 1, 4), (1, 0, 4), (3, 1, 12), (3, 0, 12)],
    ids=["saved before", "saved because of it", "the last, saved before", "the last"],
)
def test_a_stop_in_an_evaluation_gives_it_up_and_it_is_made_by_the_next_start(
    project, monkeypatch, number, saves, step
):
    settings = [*STRAIGHT, f"checkpoint.every_steps={4 * saves}"]
    straight, folder = project / "runs" / "straight", project / "runs" / "tiny"
    assert train("run.name=straight", *settings) == 0
    with monkeypatch.context() as patch:
        during_evaluation(patch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*settings) == 75
    assert open_checkpoint(folder).step == step
    assert [row["step"] for row in rows(folder) if "eval_loss" in row] == [4, 8][: number - 1]
    assert events(folder)[-2:] == ["save", "stop"]
    assert not (folder / "DONE").exists()
    assert train(*settings) == 0
    assert timeless(folder) == timeless(straight)


def test_what_is_due_at_a_step_is_saved_before_the_evaluation_of_that_step(project, monkeypatch):
    def fall() -> None:
        raise ZeroDivisionError("the evaluation fails")

    folder = project / "runs" / "tiny"
    for number in (1, 3):
        with monkeypatch.context() as patch:
            during_evaluation(patch, number, fall)
            with pytest.raises(ZeroDivisionError):
                train(*STRAIGHT, "checkpoint.every_steps=4")
        assert open_checkpoint(folder).step == 4 * number
    assert train(*STRAIGHT) == 0


def test_the_average_is_evaluated_beside_the_weights_which_stay_as_they_are(project, monkeypatch, capsys):
    plain, folder = project / "runs" / "plain", project / "runs" / "tiny"
    ema = ["train.ema.decay=0.9", "train.ema.evaluate=true"]
    assert train("run.name=plain", *STRAIGHT) == 0
    with monkeypatch.context() as patch:  # in the evaluation of the first average
        during_evaluation(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*STRAIGHT, *ema) == 75
    assert [row for row in rows(folder) if "eval_loss" in row] == []
    with monkeypatch.context() as patch:  # an error in that of the second; then it is saved
        during_evaluation(patch, 4, lambda: os.truncate("/nonexistent", 0))
        with pytest.raises(FileNotFoundError):
            train(*STRAIGHT, *ema)
    assert open_checkpoint(folder).step == 8
    assert train(*STRAIGHT, *ema) == 0
    assert timeless(folder) == timeless(plain)
    found = [row["eval_ema_loss"] for row in rows(folder) if "eval_loss" in row]
    assert len(found) == 3 and not set(found) & {row.get("eval_loss") for row in rows(folder)}
    capsys.readouterr()
    assert main(["evaluate", "runs/tiny", "--ema", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ema"] and answer["loss"] == pytest.approx(found[-1], rel=1e-6)
    assert main(["evaluate", "runs/plain", "--ema"]) == 2
    assert "plain/checkpoints/step-00000012 holds no moving average of the weights" in capsys.readouterr().err


def test_an_evaluation_after_the_save_of_its_step_counts_when_the_run_goes_on(project, monkeypatch):
    """Stopped at the very step, after its evaluation: the next start takes it from the record."""
    straight, folder = project / "runs" / "straight", project / "runs" / "tiny"
    still = [*STRAIGHT, "optimizer.learning_rate=1e-30", "evaluate.early_stopping=2", "monitor.log_every=5"]
    assert train("run.name=straight", *still) == 0
    assert open_checkpoint(straight).step == 12  # best at 4, no gain at 8 and 12
    made: list[int] = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
            during_evaluation(patch, 1, lambda: made.append(1))
            patch.setattr("llmkit.loop.evaluate.Poll", lambda control, wish: lambda: 0)
            assert train(*still, "checkpoint.every_steps=4") == 75
    assert made == [1, 1]
    assert train(*still, "checkpoint.every_steps=4") == 0
    assert timeless(folder) == timeless(straight)
    assert events(folder)[-2:] == ["early_stopping", "done"]


def test_the_step_at_which_early_stopping_ends_a_run_has_a_row(project):
    still = ["evaluate.every_steps=3", "optimizer.learning_rate=1e-30", "evaluate.early_stopping=2"]
    assert train(*still, "monitor.log_every=10") == 0
    found = [(row["step"], "loss" in row) for row in rows(project / "runs" / "tiny")]
    assert found[-2:] == [(9, True), (9, False)]


@pytest.mark.parametrize(
    ("step", "row", "wanted"),
    [
        (8, {"step": 8, "eval_loss": 1.5, "eval_bits_per_byte": 2.0}, (8, 1.5, 0)),
        (8, {"step": 8, "eval_loss": None, "eval_bits_per_byte": None}, (8, None, 2)),
        (8, {"step": 7, "eval_loss": 1.5, "eval_bits_per_byte": 2.0}, (4, 3.0, 1)),
        (4, {"step": 4, "eval_loss": 1.5, "eval_bits_per_byte": 2.0}, (4, 3.0, 1)),
    ],
    ids=["on record", "not finite", "of another step", "known already"],
)
def test_an_evaluation_on_record_counts_once(tmp_path: Path, monkeypatch, step, row, wanted):
    state = TrainState(step, evaluated_step=4, eval_loss=3.0, best_eval_loss=2.0, evaluations_without_gain=1)
    t = at_a_checkpoint(tmp_path, monkeypatch, state, [row], early_stopping=9)
    take_over_record(t)
    assert (state.evaluated_step, state.eval_loss, state.evaluations_without_gain) == wanted


@pytest.mark.parametrize(
    ("step", "finished", "tasks_step", "named"),
    [(8, False, 8, [8]), (7, False, None, [None]), (8, True, 8, [])],
)
def test_of_the_record_tasks_are_taken_over_and_the_best_is_named(
    tmp_path: Path, monkeypatch, step, finished, tasks_step, named
):
    state = TrainState(step)
    record = [{"step": 8, "eval_loss": 1.5, "eval_bits_per_byte": 2.0}, {"step": 8, "eval/toy/acc": 0.5}]
    t = at_a_checkpoint(tmp_path, monkeypatch, state, record)
    t.has_nothing_to_do = finished
    take_over_record(t)
    assert (state.tasks_step, t.named) == (tasks_step, named)


def at_a_checkpoint(tmp_path: Path, monkeypatch, state: TrainState, record, early_stopping=None) -> Any:
    """As much of a trainer as is asked about its record; `named`: steps that are named as the best ones."""
    named: list[int | None] = []
    monkeypatch.setattr("llmkit.loop.evaluations.name_best", lambda t: named.append(t.state.best_eval_step))
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for row in record:
        metrics.append(row)
    evaluate = Evaluate(early_stopping=early_stopping)
    config = Config(data=Data(sources=[Source(type="stdlib")]), evaluate=evaluate)
    return SimpleNamespace(
        state=state, config=config, metrics=metrics, mesh=Mesh(), has_nothing_to_do=False, named=named
    )


def test_an_evaluation_equals_that_of_the_saved_model(project):
    assert train("evaluate.every_steps=6") == 0
    folder = project / "runs" / "tiny"
    import llmkit

    found = llmkit.Run(folder).evaluate()
    last = [row for row in rows(folder) if "eval_loss" in row][-1]
    assert last["eval_loss"] == pytest.approx(found.loss, rel=1e-6)
    assert math.isfinite(last["eval_bits_per_byte"])
