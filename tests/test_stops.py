"""How `llmkit train` ends on request: saved, with the reason on record, and able to go on."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.monitor import background
from llmkit.stopping import SIGNALS
from tests.monitor.test_background import fill
from tests.program import make_project, timeless
from tests.test_train import at_step


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder of a small configuration, as working directory."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*overrides: str) -> int:
    return main(["train", "tiny.yaml", *overrides])


def last_event(folder):
    return json.loads((folder / "events.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("number", SIGNALS)
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
