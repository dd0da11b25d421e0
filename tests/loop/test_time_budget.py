"""A time budget in runs whose sources end, and in runs that are slower than planned."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.config.load import load
from llmkit.config.schema import Train
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.loop.state import TrainState
from llmkit.loop.time_budget import TimeBudget, time_over
from llmkit.train import train
from tests.loop.rank_cases import Clock
from tests.program import at_step, events, last_event, make_project, recorded, rows

BUDGET = ["train.max_steps=null", "train.max_minutes=5", "evaluate.every_steps=0"]


@pytest.mark.parametrize("batch", [4, 64])
def test_a_run_ends_with_the_supply_where_that_is_shorter_than_its_time(batch, tmp_path, monkeypatch, capsys):
    """Whether the steps could be timed before (4 rows a step) or not (64)."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    limits = ["data.sources.0.max_epochs=1", f"train.global_batch_size={batch}"]
    command = ["train", "tiny.yaml", *BUDGET, *limits]
    assert main(command) == 0
    out = capsys.readouterr().out
    told = re.search(r"max_steps = (\d+): .* lasts until then \(data.sources.0.max_epochs is 1\)", out)
    assert told, out
    folder = tmp_path / "runs" / "tiny"
    assert rows(folder)[-1]["step"] == open_checkpoint(folder).step == int(told[1])
    assert events(folder)[-1] == "done"
    assert events(folder).count("max_steps") == 1
    assert main(command) == 0, "it is finished"


def test_a_run_whose_time_is_over_before_its_steps_are_stops_in_order(project, monkeypatch, capsys):
    """The machine slowed down after the steps were chosen: as if more were to be kept for the end."""
    at_step(monkeypatch, 14, lambda: monkeypatch.setattr("llmkit.loop.budget.END_SECONDS", 1e9))
    assert main(["train", "tiny.yaml", *BUDGET]) == 75
    folder = project / "runs" / "tiny"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.step == 14
    chosen = checkpoint.state["progress"]["max_steps"]
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("stop", "train.max_minutes")
    assert f"stopped by train.max_minutes after step 14 of {chosen}; saved" in capsys.readouterr().out


def test_time_that_is_over_before_the_steps_could_be_chosen_is_an_error_after_a_save(project, capsys):
    assert main(["train", "tiny.yaml", *BUDGET, "train.max_minutes=1e-4"]) == 2
    assert re.search(r"max_minutes is too short .* train\.max_steps\. Saved runs/", capsys.readouterr().err)
    assert open_checkpoint(project / "runs" / "tiny").step == 1


@pytest.mark.parametrize(
    ("later", "shorter"), [(1.4, True), pytest.param(0.6, False, marks=pytest.mark.exhaustive)]
)
def test_a_machine_that_changes_its_pace_gets_other_steps_and_the_schedule_its_end(
    later, shorter, project, capsys
):
    """The run ends as planned, with the learning rate of the schedule's end, and goes on nowhere."""
    clock = Clock(1.0, later=(60, later))
    settings = ["train.max_minutes=3", "schedule.min_lr_ratio=0.1", "monitor.log_every=1"]
    loaded = load("tiny.yaml", [*BUDGET, *settings])
    assert train(loaded, Options(), started=0.0, environment={}, hooks=[clock], clock=clock) == 0
    folder = project / "runs" / "tiny"
    chosen = recorded("max_steps", folder)
    assert (chosen[-1]["max_steps"] < chosen[0]["max_steps"]) == shorter
    noted = len(re.findall("^max_steps = ", capsys.readouterr().out, re.MULTILINE))
    assert 2 <= noted <= len(chosen) and (noted < len(chosen) or not shorter), "small changes have no line"
    assert chosen[-1]["step_seconds"] == pytest.approx(later, abs=0.1)
    assert 150.0 < clock.now < 180.0 and clock.end == [chosen[-1]["max_steps"]] * 2
    rates = [row["learning_rate"] for row in rows(folder) if "loss" in row]
    peak = loaded.config.optimizer.learning_rate
    assert rates[-1] == pytest.approx(0.1 * peak)
    assert max(abs(b - a) for a, b in pairwise(rates[12:])) < 0.03 * peak, "it nowhere jumps"


def test_a_run_that_has_lost_more_than_half_of_its_steps_is_stopped_instead(project):
    clock = Clock(1.0, later=(60, 4.0))
    loaded = load("tiny.yaml", [*BUDGET, "train.max_minutes=3"])
    assert train(loaded, Options(), started=0.0, environment={}, hooks=[clock], clock=clock) == 75
    assert last_event()["reason"] == "train.max_minutes" and clock.now < 180.0


class EndsAt30(Hook):
    """Asks for it once, when a number of steps has been chosen."""

    def request(self, t):
        return Request(max_steps=30) if t.state.step == 12 else None


def test_the_end_that_a_hook_asks_for_stays_though_there_is_time_for_more(project, capsys):
    clock = Clock(1.0)
    loaded = load("tiny.yaml", [*BUDGET, "train.max_minutes=3"])
    assert train(loaded, Options(), started=0.0, environment={}, hooks=[clock, EndsAt30()], clock=clock) == 0
    folder = project / "runs" / "tiny"
    assert clock.end == [30, 30]
    ends = [event["max_steps"] for event in recorded("max_steps", folder)]
    assert len(ends) == 2 and ends[0] > 100 and ends[1] == 30
    assert "max_steps = 30: a hook asks for it" in capsys.readouterr().out


def test_the_time_is_over_while_there_is_still_enough_for_the_end():
    def over(max_steps: int | None = None, minutes: float | None = 1.0, chosen=50, saves=1.0) -> bool:
        train = Train(max_steps=max_steps, max_minutes=minutes)
        return time_over(train, TrainState(max_steps=chosen), 100.0, lambda: 130.0, saves)

    assert not over()
    assert over(saves=25.0)
    assert not over(max_steps=50, saves=25.0)
    assert not over(minutes=None, saves=25.0)
    assert not over(chosen=None, saves=25.0)


def test_time_is_kept_for_an_evaluation_by_tasks_at_the_end_once_one_was_made():
    kept = []
    budget = TimeBudget(None)
    budget._watch, budget._asked = SimpleNamespace(after_step=lambda *given: kept.append(given[-2])), 9
    trainer = SimpleNamespace(
        state=TrainState(step=5, max_steps=9), clock=lambda: 0.0, mesh=SimpleNamespace(rank=0),
        phases=SimpleNamespace(seconds={"evaluate": 0.0, "save": 0.0}), tasks_seconds=30.0,
        saves=SimpleNamespace(seconds=2.0), loader=SimpleNamespace(first_shortage=None),
    )  # fmt: skip
    assert budget.request(trainer) is None and kept == [32.0]


def test_a_plan_that_a_resumed_run_has_no_rows_for_is_cut_and_does_not_end_it(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["train", "tiny.yaml", "data.sources.0.max_epochs=1"]
    assert main([*command, "train.max_steps=5"]) == 0
    (path,) = (tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*5")
    larger = ["train.max_steps=null", "train.max_minutes=5", "train.global_batch_size=64"]
    state = open_checkpoint(path).state
    state["progress"]["max_steps"] = 1000  # as a time budget chose it, for smaller batches
    monkeypatch.setattr("llmkit.checkpoint.read.Checkpoint.state", property(lambda self: state))
    assert main([*command, *larger]) == 0
    steps = [row["step"] for row in rows(tmp_path / "runs" / "tiny")]
    assert 5 < steps[-1] < 30
    monkeypatch.undo()
    pace = open_checkpoint(tmp_path / "runs" / "tiny").state["progress"]["pace"]
    assert pace == [5, 5, 1000], "the schedule goes on from where it was"
