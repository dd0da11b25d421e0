"""How `llmkit train` ends on request: saved, with the reason on record, and able to go on."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.data.evaluation import HeldOut
from llmkit.loop.control import Control
from llmkit.monitor import background
from tests.monitor.test_background import fill
from tests.program import at_step, events, rows, timeless, train


def last_event(folder):
    return json.loads((folder / "events.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_saves_and_the_same_command_goes_on(project, number, monkeypatch, capsys):
    folder = project / "runs" / "tiny"
    at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), number))
    assert train() == 75
    assert open_checkpoint(folder).step == 7
    assert last_event(folder)["event"] == "stop"
    assert last_event(folder)["reason"] == number.name
    assert number.name in capsys.readouterr().out
    if number == signal.SIGTERM:
        assert train("run.name=straight") == 0
        assert train() == 0
        assert timeless(folder) == timeless(project / "runs" / "straight")


def test_a_reader_that_takes_nothing_keeps_no_run_from_training_stopping_and_saving(project, monkeypatch):
    """As with `llmkit train ... | less`, or a log on a disk that has stalled."""
    monkeypatch.setattr(background, "DRAIN_SECONDS", 0.2)
    at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    reader, writer = os.pipe()
    fill(writer)
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert train() == 75
        os.close(reader)
    folder = project / "runs" / "tiny"
    assert open_checkpoint(folder).step == 7
    log = (folder / "logs" / "rank-00000.log").read_text()
    assert "stopped by SIGTERM" in log
    assert "standard output takes nothing" in log


def test_a_terminal_that_has_gone_changes_nothing(project, monkeypatch):
    def hang_up():
        os.close(reader)
        os.kill(os.getpid(), signal.SIGHUP)

    at_step(monkeypatch, 7, hang_up)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert train() == 75
    assert open_checkpoint(project / "runs" / "tiny").step == 7


def during_evaluation(monkeypatch, number: int, act) -> None:
    """Calls `act` after the first batch of evaluation `number`, counted over all runs of this test."""
    batches, begun = HeldOut.__iter__, [0]

    def watched(self):
        begun[0] += 1
        mine = begun[0]
        for index, batch in enumerate(batches(self)):
            if mine == number and index == 1:
                act()
            yield batch

    monkeypatch.setattr(HeldOut, "__iter__", watched)


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


def test_an_error_between_two_steps_loses_nothing(project, monkeypatch, capsys):
    def fall() -> None:
        raise MemoryError("the evaluation does not fit")

    folder = project / "runs" / "tiny"
    during_evaluation(monkeypatch, 1, fall)
    with pytest.raises(MemoryError):
        train(*STRAIGHT, "checkpoint.every_steps=0")
    assert open_checkpoint(folder).step == 4
    fault = last_event(folder)
    assert (fault["event"], fault["saved_step"], fault["lost_steps"]) == ("fault", 4, 0)
    assert "are lost" not in capsys.readouterr().out


def test_an_error_at_the_stop_itself_loses_nothing(project, monkeypatch):
    def fall(control: Control) -> None:
        raise MemoryError("no room to say goodbye")

    folder = project / "runs" / "tiny"
    at_step(monkeypatch, 8, (folder / "STOP").touch)
    monkeypatch.setattr(Control, "close", fall)
    with pytest.raises(MemoryError):
        train()
    fault = last_event(folder)
    assert (fault["event"], fault["saved_step"], fault["lost_steps"]) == ("fault", 8, 0)
    assert open_checkpoint(folder).step == 8


def test_an_error_in_a_step_says_what_is_lost(project, monkeypatch, capsys):
    def fall() -> None:
        raise MemoryError("the step does not fit")

    at_step(monkeypatch, 9, fall)
    with pytest.raises(MemoryError):
        train()
    fault = last_event(project / "runs" / "tiny")
    assert (fault["event"], fault["step"], fault["saved_step"], fault["lost_steps"]) == ("fault", 8, 5, 3)
    assert "3 steps are lost, all since the checkpoint of step 5" in capsys.readouterr().out


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
