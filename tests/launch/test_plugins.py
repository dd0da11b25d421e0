"""Plugins under several processes."""

from __future__ import annotations

import pytest

from tests import program
from tests.examples.project import project, rows
from tests.program import make_project
from tests.ranks import run_ranks

MODEL = """\
model:
  type: convolution
  width: 24
"""


def test_plugins_that_differ_between_ranks_end_the_run_at_its_start(tmp_path):
    make_project(tmp_path)
    case = "tests.launch.plugin_cases:train_with_own_plugin"
    results = run_ranks(2, case, joined=False, folder=str(tmp_path))
    assert [code for code, _ in results] == [2, 2]
    assert "plugin their_plugin" in "".join(text for _, text in results)
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_a_registered_model_goes_on_in_processes_that_train_several_times_and_back(tmp_path):
    common = ["schedule.steps=12", "optimizer.eps=1e-5", "checkpoint.every_steps=0"]
    with project(tmp_path, "own_model", MODEL, drop=("model",)) as folder:
        assert program.train(*common, "run.name=straight") == 0
        assert program.train(*common, "train.max_steps=4") == 0
        there = [
            [*common, f"train.max_steps={steps}", f"parallel.zero_stage={stage}"]
            for steps, stage in ((6, 3), (8, 0), (10, 2))
        ]
        case = "tests.launch.plugin_cases:go_on"
        found = run_ranks(2, case, joined=False, folder=str(folder), overrides=there)
        assert found == [[[True, [5, 6]], [True, [7, 8]], [True, [9, 10]]]] * 2
        assert program.train(*common) == 0
        assert rows(folder) == pytest.approx(rows(folder, run="straight"), rel=1e-5)
        wanted = rows(folder, "eval_loss", "straight")[-1]
        assert rows(folder, "eval_loss")[-1] == pytest.approx(wanted, rel=1e-5)
