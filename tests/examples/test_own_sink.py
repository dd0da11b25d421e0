"""The example of an own sink, from YAML and from Python; sinks that fail."""

from __future__ import annotations

import csv

import pytest

import llmkit
from tests.examples.project import project, rows
from tests.program import train

SINK = """\
monitor:
  log_every: 1
  wandb: {mode: disabled}
  sinks:
    - {type: csv, path: losses.csv}
"""


@pytest.fixture
def folder(tmp_path):
    with project(tmp_path, "own_sink", SINK, drop=("monitor",)) as folder:
        yield folder


def test_it_has_the_rows_of_training(folder):
    assert train() == 0
    with open("losses.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in found] == rows(folder)
    assert [int(row["step"]) for row in found] == list(range(1, 13))


def test_a_sink_that_raises_is_dropped_with_a_note(folder, capsys):
    class Broken(llmkit.Sink):
        def write(self, row):
            raise ConnectionError("no answer")

    loaded = llmkit.load("tiny.yaml", ["monitor.sinks=[]", "run.name=other"])
    assert llmkit.train(loaded, sinks=[Broken()]).done
    assert "Broken is dropped: ConnectionError: no answer" in capsys.readouterr().out
    assert len(rows(folder, run="other")) == 12
