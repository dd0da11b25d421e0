"""How `llmkit train` ends on request: saved, with the reason on record, and able to go on."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.data.batches import BatchReader
from llmkit.end_file import End, read_end
from llmkit.errors import RunFault, UserError
from llmkit.loop.control import Control
from llmkit.monitor import background
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.watchdog.watch import Watch
from tests.loop.test_evaluate import STRAIGHT, during_evaluation
from tests.monitor.test_background import fill
from tests.program import at_step, last_event, timeless, train


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
        raise ZeroDivisionError("the step cannot be done")

    at_step(monkeypatch, 9, fall)
    with pytest.raises(ZeroDivisionError):
        train()
    fault = last_event(project / "runs" / "tiny")
    assert (fault["event"], fault["step"], fault["saved_step"], fault["lost_steps"]) == ("fault", 8, 5, 3)
    assert "3 steps are lost, all since the checkpoint of step 5" in capsys.readouterr().out


def end_of_data(monkeypatch, steps: int, error: Exception) -> None:
    """After so many steps (1, 3, 7, ...) the data raise `error`."""
    made = BatchReader.blocks

    def ending(self):
        yield from itertools.islice(
            made(self), (steps + 1).bit_length() - 1
        )  # of 1, 2, 4, ... steps
        raise error

    monkeypatch.setattr(BatchReader, "blocks", ending)


def test_data_that_fail_end_the_run_saved_as_it_was_before_their_step(project, monkeypatch, capsys):
    assert train("run.name=straight") == 0
    folder = project / "runs" / "tiny"
    with monkeypatch.context() as patch:
        end_of_data(patch, 3, UserError("web.jsonl:17: there is no text in it."))
        assert train("checkpoint.every_steps=0") == 2
    message = capsys.readouterr().err
    assert message.startswith("llmkit: web.jsonl:17: there is no text in it. Saved runs/tiny/")
    fault = last_event(folder)
    assert (fault["event"], fault["step"], fault["lost_steps"]) == ("fault", 3, 0)
    assert train() == 0
    assert timeless(folder) == timeless(project / "runs" / "straight")


def test_a_save_that_fails_does_not_hide_why_the_run_ends(project, monkeypatch, capsys):
    def full(*arguments, **named):
        raise RunFault("the disk is full")

    end_of_data(monkeypatch, 3, UserError("line 17 is broken"))
    monkeypatch.setattr("llmkit.loop.saving.write_and_commit", full)
    assert train("checkpoint.every_steps=0") == 2
    assert "llmkit: line 17 is broken. NOT SAVED: the disk is full" in capsys.readouterr().err
    assert last_event(project / "runs" / "tiny")["lost_steps"] == 3


def test_where_nothing_was_trained_nothing_is_saved(project, monkeypatch, capsys):
    end_of_data(monkeypatch, 0, UserError("line 1 is broken"))
    assert train() == 2
    assert capsys.readouterr().err == "llmkit: line 1 is broken\n"
    assert not list((project / "runs" / "tiny" / "checkpoints").iterdir())


@pytest.fixture
def end_file(project, monkeypatch):
    """The file in which a batch script asks how a start ended."""
    path = project / "end"
    monkeypatch.setenv("END_FILE", str(path))
    return path


def test_a_batch_script_reads_how_each_start_ended(project, monkeypatch, end_file):
    end_file.write_text('{"end": "fault"}')  # of an attempt before
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train() == 0  # the file tells the rest; launchers call any other code a failure
    assert read_end(end_file) == End("stopped", "SIGTERM", step=7, saved_step=7, first_step=0)
    assert train() == 0
    assert read_end(end_file) == End("done", step=12, saved_step=12, first_step=7)
    assert train() == 0
    assert read_end(end_file) == End("done", step=12, saved_step=12, first_step=12)


def test_what_follows_a_fault_may_take_longer_than_a_step(project, monkeypatch):
    """As where the mirror to W&B waits for a slow server: the rank does not hang."""
    begun: list[str] = []
    monkeypatch.setattr(Watch, "settle", lambda watch: begun.append("settle"))
    monkeypatch.setattr(Mirror, "finish", lambda mirror: begun.append("mirror") or "")

    def fail() -> None:
        raise RunFault("n2 computes wrongly")

    at_step(monkeypatch, 3, fail)
    assert train() == 1
    assert begun == ["settle", "mirror"]


def test_a_batch_script_reads_of_faults_what_is_saved(project, monkeypatch, end_file):
    def fall() -> None:
        raise RunFault("n2 computes wrongly", ["n2"])

    at_step(monkeypatch, 9, fall)
    assert train() == 1
    expected = End("fault", "n2 computes wrongly", step=8, saved_step=5, first_step=0, hosts=("n2",))
    assert read_end(end_file) == expected


def test_a_batch_script_reads_of_mistakes(project, end_file):
    assert train("train.max_step=5") == 2
    end = read_end(end_file)
    assert end is not None and end.end == "mistake" and "train.max_step" in end.reason


def test_a_batch_script_reads_of_a_stop_before_the_first_step(project, monkeypatch, end_file):
    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(importlib.import_module("llmkit.train"), "build_trainer", stop)
    assert train() == 0
    assert read_end(end_file) == End("stopped", "SIGTERM")
