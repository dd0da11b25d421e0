"""The example of an own hook, from YAML and from Python; hooks that fail."""

from __future__ import annotations

import json

import pytest

import llmkit
from llmkit.checkpoint.read import load as load_checkpoint
from tests.examples.project import project, rows
from tests.program import train

HOOK = """\
hooks:
  - type: save-best
    margin: 0.01
evaluate:
  every_steps: 3
"""


@pytest.fixture
def folder(tmp_path):
    with project(tmp_path, "own_hook", HOOK) as folder:
        yield folder


def saves(folder, run="tiny"):
    events = map(json.loads, (folder / "runs" / run / "events.jsonl").read_text().splitlines())
    return [event["step"] for event in events if event["event"] == "save"]


def test_it_saves_at_each_record_and_remembers_it(folder):
    assert train("checkpoint.every_steps=0", "train.max_steps=8", "schedule.steps=12") == 0
    assert {4, 7} <= set(saves(folder))  # after the steps that follow the evaluations at 3 and 6
    run = llmkit.Run("runs/tiny")
    known = [row["eval_loss"] for row in run.metrics if "eval_loss" in row and row["step"] < 8]
    state = load_checkpoint(run.checkpoints[-1]).state  # of the last step, before its evaluation
    assert json.dumps(min(known)) in json.dumps(state["hooks"])
    assert set(rows(folder, "clipped")) <= {0.0, 1.0} and len(rows(folder, "clipped")) == 8
    assert train("checkpoint.every_steps=0", "schedule.steps=12", "hooks.0.margin=9") == 0
    assert saves(folder)[-1] == 12 and len(saves(folder)) == 4  # no record of 9 nats


def test_it_is_given_from_python_too(folder):
    loaded = llmkit.load("tiny.yaml", ["hooks=[]", "checkpoint.every_steps=0"])
    from own_hook import SaveBest

    run = llmkit.train(loaded, hooks=[SaveBest(SaveBest.Config())])
    assert run.done and {4, 7} <= set(saves(folder))
    assert [row["step"] for row in run.metrics if "loss" in row] == list(range(1, 13))


def test_a_hook_that_raises_is_named_and_the_run_is_saved(folder):
    class Broken(llmkit.Hook):
        def after_step(self, t, result):
            if t.state.step == 4:
                raise ValueError("a bug")

    with pytest.raises(Exception, match="Broken"):
        llmkit.train(llmkit.load("tiny.yaml", ["hooks=[]", "checkpoint.every_steps=0"]), hooks=[Broken()])
    assert saves(folder) == [4] or saves(folder) == [5]


def test_a_hook_that_nobody_registered_is_refused_with_its_line(folder, capsys):
    assert train("hooks.0.type=save-worst") == 2
    problem = capsys.readouterr().err
    assert "hooks.0.type must be one of" in problem or "hooks.0.type must be save-best" in problem
