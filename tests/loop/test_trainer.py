"""Runs on a clock that is set, by one process and by two."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.load import load
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.loader import TrainLoader
from llmkit.engine.native import NativeEngine
from llmkit.errors import RunFault
from llmkit.loop import saving
from llmkit.loop import trainer as module
from llmkit.loop.hook import Hook
from llmkit.loop.options import Options
from llmkit.loop.phases import NAMES
from llmkit.monitor.goodput import LOST
from llmkit.monitor.media import read_media
from llmkit.train import train
from tests.chosen import chosen, few_at_every_commit
from tests.drills.test_world import free_ports
from tests.program import at_step, events, last_event, make_project, recorded, rows
from tests.program import train as train_tiny
from tests.ranks import run_ranks


class Clock:
    """A clock that goes on only where something calls what was wrapped."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self._patch = 0.0, patch

    def __call__(self) -> float:
        return self.now

    def takes(self, owner: Any, name: str, seconds: float) -> None:
        """From now on each call of a function takes so many seconds."""
        function: Callable[..., Any] = getattr(owner, name)

        def slow(*arguments: Any, **named: Any) -> Any:
            self.now += seconds
            return function(*arguments, **named)

        self._patch.setattr(owner, name, slow)


def test_the_columns_of_time_follow_from_what_a_step_takes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.takes(NativeEngine, "train_step", 2.0)
    clock.takes(TrainLoader, "__next__", 0.5)
    clock.takes(saving, "write_and_commit", 100.0)
    clock.takes(EvalLoader, "__iter__", 300.0)
    uploads = Hook()
    for name in ("after_save", "after_evaluate"):
        monkeypatch.setattr(uploads, name, lambda t, what: None, raising=False)
        clock.takes(uploads, name, 10.0)
    monkeypatch.setattr("llmkit.loop.step_log.device_peak", lambda device, dtype, fp8: (1e6, "a known peak"))
    settings = ["monitor.log_every=4", "checkpoint.every_steps=3", "evaluate.every_steps=5"]
    loaded = load("tiny.yaml", [*settings, "parallel.activation_checkpointing=full"])
    assert train(loaded, Options(), started=0.0, environment={}, hooks=[uploads], clock=clock) == 0
    folder = project / "runs" / "tiny"
    first, *others = [row for row in rows(folder) if "loss" in row]
    assert first["step_seconds"] is None and first["mfu"] is None
    flops = 6 * 26_848 + 12 * 2 * 32 * 32  # of a token: parameters without padding; 2 layers, width 32
    causal = 6 * (26_848 - 192) + 12 * 2 * 32 * 33 / 2  # without the norms
    again = 2 * 2 * (32 * (32 + 2 * 16 + 32) + 2 * 32 * 64) + 4 * 2 * 32 * 32  # not the last product
    assert [row["step"] for row in others] == [4, 8, 12]
    for row in others:
        assert row["step_seconds"] == pytest.approx(2.5)
        assert row["data_seconds"] == pytest.approx(0.5)
        assert row["tokens_per_second"] == pytest.approx(4 * 32 / 2.5)
        assert row["tokens_per_second_per_device"] == row["tokens_per_second"]
        assert row["mfu_causal"] == pytest.approx(4 * 32 / 2.5 * causal / 1e6)
        assert row["hfu"] == pytest.approx(4 * 32 / 2.5 * (flops + again) / 1e6)
        assert (row["mfu"], row["mfu_peak"]) == (pytest.approx(4 * 32 / 2.5 * flops / 1e6), "a known peak")
    # Saves come after steps 3, 6 and 9, evaluations after 5 and 10, each with a hook that takes 10 s.
    phases = ("step", "data", "save", "evaluate", "other")
    found = [[row[f"time/{name}"] for name in phases] for row in (first, *others)]
    assert found == [
        [2.0, 0.5, 0.0, 0.0, 0.0], [6.0, 1.5, 110.0, 0.0, 0.0], [8.0, 2.0, 110.0, 310.0, 0.0],
        [8.0, 2.0, 110.0, 310.0, 0.0],
    ]  # fmt: skip
    assert others[-1]["goodput"] == pytest.approx(24.0 / (24.0 + 6.0 + 330.0 + 620.0), abs=1e-6)
    last = {name: others[-1][f"lost/{name}"] for name in LOST if others[-1][f"lost/{name}"]}
    assert last == {"data": 6.0, "save": 330.0, "evaluate": 620.0}
    spent = np.cumsum([sum(row[f"time/{name}"] for name in NAMES) for row in (first, *others)])
    assert [row["elapsed_seconds"] for row in (first, *others)] == pytest.approx(spent.tolist())
    done = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    seconds = {"data": 6.0, "step": 24.0, "save": 440.0, "evaluate": 930.0}
    assert done["phase_seconds"] | seconds == pytest.approx(done["phase_seconds"])


def test_a_step_in_which_graphs_are_made_is_one_of_compiling(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, made = Clock(monkeypatch), list[int]()
    clock.takes(NativeEngine, "train_step", 2.0)
    at_step(monkeypatch, 4, lambda: made.append(4))  # as for a batch of another shape
    monkeypatch.setattr(module, "graphs_compiled", lambda: len(made))
    monkeypatch.setattr(module, "graph_breaks", dict)

    class Compiled(Hook):
        """The trainer believes so; nothing is."""

        def on_start(self, t: Any) -> None:
            object.__setattr__(t.plan.kernels, "compiled", True)

    loaded = load("tiny.yaml", ["train.max_steps=6", "evaluate.every_steps=0", "run.deterministic=false"])
    assert train(loaded, Options(), started=0.0, environment={}, hooks=[Compiled()], clock=clock) == 0
    found = [row for row in rows(project / "runs" / "tiny") if "loss" in row]
    assert [row["time/compile"] for row in found] == [2.0, 0.0, 0.0, 2.0, 0.0, 0.0]
    assert [row["time/step"] for row in found] == [0.0, 2.0, 2.0, 0.0, 2.0, 2.0]
    assert [row["step_seconds"] for row in found] == [None, 2.0, 2.0, None, 2.0, 2.0]
    assert found[-1]["lost/compile"] == 4.0


SEEN = [
    "data.sources=[{name: a, type: text, path: corpus}, {name: b, type: text, path: corpus}]",
    'monitor.samples=["the ", "row of"]', "monitor.statistics_every=3", "monitor.log_every=3",
    "train.max_steps=6", "evaluate.every_steps=3", "model.hidden_dropout=0",
    "train.global_batch_size=5", "train.micro_batch_size=1",  # two ranks do not have as many rows each
]  # fmt: skip
"""A run of which all is recorded."""
CASES: dict[str, dict[str, Any]] = {
    # name: settings, and the seconds of a step by the clock of each rank
    "timed-saves": {
        "overrides": ["checkpoint.every_steps=0", "checkpoint.every_minutes=0.5"], "seconds": [10.0, 1000.0],
    },
    "early-stopping": {
        "overrides": ["optimizer.learning_rate=1e-30", "evaluate.every_steps=2", "evaluate.early_stopping=2"],
    },
    "time-budget": {
        "overrides": ["train.max_steps=null", "train.max_minutes=0.75", "evaluate.every_steps=0"],
        "seconds": [1.0, 100.0],
    },
    "slower": {
        "overrides": ["train.max_steps=null", "train.max_minutes=2", "evaluate.every_steps=0"],
        "seconds": [1.0, 0.1], "later": [50, 1.5],
    },
    "ends": {
        "overrides": ["train.max_steps=null", "train.max_minutes=2", "evaluate.every_steps=0"],
        "hook": "ends",
    },
    "records": {"overrides": ["train.max_steps=4", "monitor.log_every=2"], "hook": "records"},
    "stops": {"overrides": [], "hook": "stops"},
    "profiled": {
        "overrides": ["monitor.profile_steps=[2,3]", "monitor.profile_ranks=[0,1]", "train.max_steps=4"],
        "hook": "late",
    },
    "seen-tp": {
        "overrides": [*SEEN, "parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
    },
    "seen-z1": {"overrides": [*SEEN, "parallel.zero_stage=1"]},
    "seen-z3": {"overrides": [*SEEN, "parallel.zero_stage=3"]},
    "seen-cp": {
        "overrides": [*SEEN, "parallel.context_parallel_size=2", "parallel.context_parallel_form=ring"],
    },
    "fails": {"overrides": ["checkpoint.every_steps=0"], "hook": "fails"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    make_project(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What came out of every case that is asked for, for each of two ranks; all in one launch."""
    seen = chosen(request, "name")
    common = {"hook": None, "seconds": [1.0, 1.0]}
    cases: list[dict[str, Any]] = [
        common | case | {"name": name, "overrides": ["run.deterministic=false", *case["overrides"]]}
        for name, case in CASES.items()
        if not name.startswith("seen-") or name in seen
    ]
    ranks = run_ranks(
        2, "tests.loop.rank_cases:runs", joined=False,
        folder=str(folder), ports=free_ports(len(cases)), cases=cases,
    )  # fmt: skip
    return {case["name"]: [found[index] for found in ranks] for index, case in enumerate(cases)}


@pytest.mark.parametrize(
    "name", few_at_every_commit(["seen-tp", "seen-z1", "seen-z3", "seen-cp"], ["seen-tp", "seen-z3"])
)
def test_what_is_recorded_does_not_depend_on_the_layout(
    outcomes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Losses of sources and positions, statistics of layers, samples that ranks write together."""
    monkeypatch.chdir(folder)
    if not (folder / "runs/alone").exists():
        loaded = load("tiny.yaml", ["run.name=alone", *SEEN])
        assert train(loaded, Options(), started=time.monotonic(), environment={}) == 0
    alone, run = folder / "runs/alone", folder / "runs" / name
    kinds = ["loss", "loss_at", "grad_norm", "weight_norm", "update_ratio"]
    kinds += ["activation_rms", "activation_max", "tokens", "epochs", "loss_mean", "learning_rate"]
    kinds += ["skipped_total", "bits_per_byte", "perplexity"]
    compared = {*kinds, *(f"eval_{kind}" for kind in kinds)}
    for found, wanted in zip(rows(run), rows(alone), strict=True):
        for column in {*found, *wanted}:
            if column.partition("/")[0] in compared:
                assert found[column] == pytest.approx(wanted[column], rel=1e-5), column
    columns = {column for row in rows(alone) for column in row}
    assert {"loss/b", "eval_loss/a", "eval_loss_at/16-31", "activation_max/blocks.1"} <= columns
    tables = [[item for item in read_media(each) if item["kind"] == "table"] for each in (run, alone)]
    assert tables[0] == tables[1] and [item["step"] for item in tables[0]] == [3, 6]
    others = [[item for item in read_media(each) if item["kind"] == "histogram"] for each in (run, alone)]
    counted = [[(item["step"], item["name"], sum(item["counts"])) for item in each] for each in others]
    assert counted[0] == counted[1] != []


def saved(run: Path) -> list[int]:
    return [event["step"] for event in recorded("save", run)]


def test_saves_by_the_clock_of_rank_0(folder: Path, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    assert [found["code"] for found in outcomes["timed-saves"]] == [0, 0]
    assert saved(folder / "runs" / "timed-saves") == [5, 10, 12]


def test_the_profile_of_a_rank_that_waits_for_a_late_one_says_so(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    assert [found["code"] for found in outcomes["profiled"]] == [0, 0]
    summaries = sorted((folder / "runs" / "profiled" / "profile").glob("*.summary.json"))
    punctual, late = (json.loads(path.read_text()) for path in summaries)
    assert punctual["bound"] == "communication" and punctual["steps"] == 2
    assert late["shares"]["communication"] < punctual["shares"]["communication"]


def test_early_stopping_ends_both_at_one_step(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    assert [(found["code"], found["end"]) for found in outcomes["early-stopping"]] == [(0, [6, 12])] * 2
    assert events(folder / "runs" / "early-stopping")[-2:] == ["save", "done"]


def test_a_time_budget_becomes_the_same_steps_on_both_and_is_kept(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = outcomes["time-budget"]
    assert (first["code"], second["code"]) == (0, 0)
    chosen = open_checkpoint(folder / "runs" / "time-budget").step
    assert first["end"] == second["end"] == [chosen, chosen]
    assert chosen > 25 and first["now"] < 45.0
    assert events(folder / "runs" / "time-budget").count("max_steps") == 1


def test_a_machine_that_slows_down_shortens_the_run_on_both(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = outcomes["slower"]
    run = folder / "runs" / "slower"
    assert (first["code"], second["code"]) == (0, 0)
    assert first["end"] == second["end"] and first["now"] < 120.0
    chosen = [event["max_steps"] for event in recorded("max_steps", run)]
    assert len(chosen) >= 2 and chosen[-1] == first["end"][0] < chosen[0]


def test_the_end_that_a_hook_of_another_rank_asks_for_stays(
    outcomes: dict[str, list[dict[str, Any]]],
) -> None:
    """Though there is time for more."""
    assert [found["end"] for found in outcomes["ends"]] == [[30, 30]] * 2


def test_numbers_of_both_ranks_are_reduced_by_their_rule(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    assert [found["code"] for found in outcomes["records"]] == [0, 0]
    last = [row for row in rows(folder / "runs" / "records") if "loss" in row][-1]
    # Of steps 3 and 4: rank 0 has recorded 3 and 4, rank 1 has recorded 4 and 5.
    wanted = {"x/mean": 4.0, "x/sum": 16.0, "x/max": 5.0, "x/min": 3.0, "x/last": 4.0, "of one rank": 5.0}
    assert {name: last[name] for name in wanted} == wanted
    # By the clock of rank 0 a step takes a second, of 4 rows of 32 tokens.
    assert (last["tokens_per_second"], last["tokens_per_second_per_device"]) == (128.0, 64.0)
    assert last["time/communication"] > 0.0 and last["time/optimizer"] > 0.0


def test_a_stop_that_a_hook_of_one_rank_asks_for_has_its_reason_on_record(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    assert [found["code"] for found in outcomes["stops"]] == [75, 75]
    last = last_event(folder / "runs" / "stops")
    assert (last["event"], last["step"], last["reason"]) == ("stop", 5, "the hook Stops: enough")


def test_a_hook_that_fails_on_one_rank_ends_both_saved(
    folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = outcomes["fails"]
    run = folder / "runs" / "fails"
    reason = "the hook Fails failed in after_step: ZeroDivisionError: of this rank alone"
    assert second["code"] == f"HookError: {reason}"
    assert first["errors"].startswith("llmkit: rank 1 (") and f"HookError: {reason}" in first["errors"]
    assert open_checkpoint(run).step in (5, 6)
    last = last_event(run)
    assert (last["event"], last["lost_steps"]) == ("fault", 0)


def test_an_unknown_peak_is_said_once_and_gives_no_utilization(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmkit.loop.step_log.device_peak", lambda device, dtype, fp8: (None, "no such GPU"))
    settings = ["train.max_steps=3", "evaluate.every_steps=0", "run.deterministic=false"]
    assert train(load("tiny.yaml", settings), Options(), started=0.0, environment={}) == 0
    assert capsys.readouterr().out.count("no utilization (MFU) will be given: no such GPU") == 1
    last = rows(project / "runs" / "tiny")[2]
    assert last["tokens_per_second"] > 0 and last["mfu_peak"] == "no such GPU"
    assert last["mfu"] is None and last["mfu_causal"] is None


def test_saves_that_go_on_failing_end_the_run(project, monkeypatch, capsys):
    save = saving.write_and_commit

    def failing(*arguments, **named):
        if arguments[1].step in (2, 4, 8, 9, 10):
            raise RunFault("the disk is full")
        return save(*arguments, **named)

    monkeypatch.setattr(saving, "write_and_commit", failing)
    often = ["checkpoint.every_steps=1", "checkpoint.max_failed_saves=3", "train.max_steps=20"]
    assert train_tiny(*often) == 1
    message = capsys.readouterr().err
    assert "3 saves in a row have failed (checkpoint.max_failed_saves), the last one: the disk is" in message
    folder = project / "runs" / "tiny"
    assert [row["step"] for row in recorded("save_failed", folder)] == [2, 4, 8, 9, 10]
    assert recorded("fault", folder)[0]["lost_steps"] == 3
    monkeypatch.setattr(saving, "write_and_commit", save)
    assert train_tiny(*often) == 0
