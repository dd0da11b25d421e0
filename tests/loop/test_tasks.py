"""Evaluations by tasks in the course of a run: when they are made, given up, and taken over."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.evaluation.command import evaluate_by_tasks
from llmkit.evaluation.harness import Tasks, figures
from llmkit.loop import tasks as loop_tasks
from llmkit.parallel.mesh import Mesh
from llmkit.weights import open_weights
from tests.evaluation import toys
from tests.program import events, rows, timeless, train

NAMES = ["toy_choice", "toy_rolling", "toy_answer"]


@pytest.fixture
def asked(project: Path) -> list[str]:
    """Settings of a run that is evaluated by tasks every 5 steps of 12."""
    toys.make_tasks(project / "tasks", answer_tokens=6)
    names = json.dumps(NAMES)
    return [
        f"evaluate.tasks.names={names}", "evaluate.tasks.include_path=tasks", "evaluate.tasks.every_steps=5",
        "evaluate.tasks.limit=3", "evaluate.tasks.num_fewshot=0",
    ]  # fmt: skip


def of_tasks(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> figures, as recorded."""
    found = {}
    for row in rows(folder):
        if "loss" not in row and "eval_loss" not in row:
            assert row["step"] not in found
            found[row["step"]] = {name: value for name, value in row.items() if name != "step"}
    return found


def test_figures_are_recorded_and_equal_those_of_the_saved_model_and_training_is_as_without(
    project, asked, capsys
):
    assert train("run.name=plain") == 0
    assert train(*asked) == 0
    folder = project / "runs" / "tiny"
    found = of_tasks(folder)
    assert list(found) == [5, 10, 12]
    assert [row for row in timeless(folder) if len(row) > 1] == timeless(project / "runs" / "plain")
    said = capsys.readouterr().out
    assert "toy_choice/acc " in said and "it/s]" not in said
    tasks = Tasks(tuple(NAMES), "tasks", 0, 3)
    again = evaluate_by_tasks(open_weights(folder), tasks, Mesh())
    assert again is not None
    assert found[12] == pytest.approx({f"eval/{k}": v for k, v in figures(again).items()}, rel=1e-5)


@pytest.mark.parametrize("number", [1, 3], ids=["in the course", "the last"])
def test_a_stop_gives_it_up_and_the_next_start_makes_it(project, asked, monkeypatch, number):
    assert train("run.name=straight", *asked) == 0
    made = []

    def watched(*arguments, **options):
        made.append(1)
        if len(made) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return loop_tasks.run_tasks_(*arguments, **options)

    folder = project / "runs" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(loop_tasks, "run_tasks_", loop_tasks.run_tasks, raising=False)
        patch.setattr(loop_tasks, "run_tasks", watched)
        assert train(*asked) == 75
    step = [5, 10, 12][number - 1]
    assert open_checkpoint(folder).step == step and list(of_tasks(folder)) == [5, 10, 12][: number - 1]
    assert train(*asked) == 0
    assert of_tasks(folder) == of_tasks(project / "runs" / "straight")
    assert timeless(folder) == timeless(project / "runs" / "straight")


def test_what_a_time_budget_has_no_time_for_is_left_out_and_the_run_is_done(
    project, asked, monkeypatch, capsys
):
    def slow(*arguments, **options):
        monkeypatch.setattr("llmkit.loop.budget.END_SECONDS", 1e9)  # as if it had taken long
        return run(*arguments, **options)

    run = loop_tasks.run_tasks
    monkeypatch.setattr(loop_tasks, "run_tasks", slow)
    budget = ["train.max_steps=null", "train.max_minutes=5", "data.sources.0.max_epochs=1"]
    assert train(*asked, *budget, "evaluate.tasks.every_steps=0", "evaluate.every_steps=0") == 0
    folder = project / "runs" / "tiny"
    assert of_tasks(folder) == {} and events(folder)[-2:] == ["tasks_left_out", "done"]
    said = capsys.readouterr().out
    assert "evaluate.tasks left out: train.max_minutes is over; `llmkit evaluate runs/tiny --tasks" in said
    assert "asked to stop" not in said


def test_an_evaluation_on_record_is_not_made_again(project, asked, monkeypatch):
    assert train(*asked) == 0
    folder = project / "runs" / "tiny"
    before = of_tasks(folder)
    (folder / "DONE").unlink()
    monkeypatch.setattr(loop_tasks, "run_tasks", None)
    assert train(*asked) == 0
    assert of_tasks(folder) == before


def test_tasks_that_cannot_be_had_end_the_run_at_its_start(project, asked, capsys):
    (project / "tasks" / "toy_choice.jsonl").unlink()
    assert train(*asked) == 2
    said = capsys.readouterr().err
    assert "llmkit: one of the tasks toy_answer, toy_choice, toy_rolling cannot be loaded (FileNotF" in said
    assert not (project / "runs" / "tiny" / "metrics.jsonl").exists()


def test_answers_that_the_model_cannot_write_end_the_run_at_its_start(project, asked, capsys):
    file = project / "tasks" / "toy_answer.yaml"
    kept = file.read_text()
    for change, says in (
        ("max_gen_toks: 32", "answers of 32 tokens, and the model can see 32"),
        ("beams: 3", "beams is not known here"),
    ):
        file.write_text(kept.replace("max_gen_toks: 6", change))
        assert file.read_text() != kept and train(*asked) == 2
        assert says in capsys.readouterr().err
    assert not (project / "runs" / "tiny" / "metrics.jsonl").exists()


def test_an_interval_without_tasks_is_a_mistake(project, capsys):
    assert train("evaluate.tasks.every_steps=5") == 2
    assert "needs tasks: evaluate.tasks.names [] (default) is empty" in capsys.readouterr().err
