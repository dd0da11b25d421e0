"""`llmkit evaluate --tasks` on a run, as a user calls it."""

from __future__ import annotations

import json

import pytest

from llmkit.cli import main
from llmkit.evaluation.harness import figures
from tests.evaluation import toys
from tests.program import train


def test_a_run_is_evaluated_by_tasks_with_a_table_and_a_file_of_results(project, capsys):
    assert train("train.max_steps=2") == 0
    tasks = toys.make_tasks(project / "tasks")
    command = ["evaluate", "runs/tiny", "--tasks", "toy_rolling,toy_choice", "--include-path", str(tasks)]
    capsys.readouterr()
    assert main([*command, "--output", "results.json", "--limit", "3", "--num-fewshot", "0"]) == 0
    shown = capsys.readouterr().out
    assert "|toy_choice " in shown and "|acc_norm" in shown and "bits_per_byte" in shown
    results = json.loads((project / "results.json").read_text())
    assert results["n-samples"]["toy_choice"]["effective"] == 3 and "samples" not in results
    assert results["model"]["weights"].endswith("step-00000002") and results["model"]["precision"] == "fp32"
    assert results["model"]["versions"]["lm_eval"] and results["versions"]["toy_choice"] == 1.0
    assert main([*command, "--json", "--batch-size", "2", "--limit", "3", "--num-fewshot", "0"]) == 0
    again = json.loads(capsys.readouterr().out)["results"]
    for task, metrics in results["results"].items():
        for name, value in metrics.items():
            assert again[task][name] == (pytest.approx(value) if isinstance(value, float) else value), name
    assert main([*command, "--output", "none/results.json"]) == 2
    assert "there is no folder none" in capsys.readouterr().err
    assert main([*command, "--output", "tasks"]) == 2
    assert "--output tasks: is a folder; name a file in it" in capsys.readouterr().err
    assert main([*command, "--tensor-parallel", "2"]) == 2
    said = capsys.readouterr().err
    assert "2 does not divide the number of processes, which is 1; launch with torchrun" in said


def test_a_run_is_evaluated_as_lm_eval_evaluates_its_export(project, capsys):
    assert train("train.max_steps=2") == 0
    tasks = toys.make_tasks(project / "tasks", answer_tokens=6)
    assert main(["export", "runs/tiny", "exported"]) == 0
    wanted = toys.by_lm_eval(tasks, toys.NAMES, "exported", limit=3)
    capsys.readouterr()
    for folder in ("runs/tiny", "exported"):
        command = ["evaluate", folder, "--tasks", ",".join(toys.NAMES), "--include-path", str(tasks)]
        assert main([*command, "--limit", "3", "--json", "--precision", "fp32"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures(found) == pytest.approx(figures(wanted), rel=1e-5)
