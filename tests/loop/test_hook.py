"""Hooks and sinks of other people's code, in whole runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.loop.hook import Evaluation, Hook, Request
from llmkit.loop.hook_list import HookError
from llmkit.loop.options import Options
from llmkit.monitor.sink import Sink
from llmkit.train import train
from tests.program import events, last_event, recorded, rows, timeless

RUN = Path("runs/tiny")


def fit(*hooks: Hook, overrides: tuple[str, ...] = (), sinks: tuple[Sink, ...] = ()) -> int:
    """Exit code of a run with these hooks."""
    loaded = load("tiny.yaml", overrides)
    return train(loaded, Options(), started=time.monotonic(), environment={}, hooks=hooks, sinks=sinks)


class Watch(Hook):
    """Writes down what it is called with, and records numbers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.total = 0

    def on_start(self, t: Any) -> None:
        self.calls.append(("start", t.state.step))

    def after_step(self, t: Any, result: Any) -> None:
        self.total += 1
        self.calls.append(("step", t.state.step))
        t.record("weights/max", max(weight.abs().max() for weight in t.engine.model.parameters()), "max")
        t.record("seen", 1, reduce="sum")

    def after_evaluate(self, t: Any, evaluation: Evaluation) -> None:
        self.calls.append(("evaluate", evaluation.step))
        assert evaluation.loss == t.state.eval_loss

    def after_save(self, t: Any, path: Path) -> None:
        self.calls.append(("save", path.name))

    def on_end(self, t: Any) -> None:
        self.calls.append(("end", t.state.step))

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


def test_a_hook_is_called_in_order_records_numbers_and_keeps_its_state(project: Path) -> None:
    first, second = Watch(), Watch()
    settings = (
        "train.max_steps=3",
        "checkpoint.every_steps=2",
        "evaluate.every_steps=2",
        "monitor.log_every=2",
    )
    assert fit(first, overrides=settings) == 0
    assert first.calls == [
        ("start", 0), ("step", 1), ("step", 2), ("save", "step-00000002"), ("evaluate", 2), ("step", 3),
        ("save", "step-00000003"), ("evaluate", 3), ("end", 3),
    ]  # fmt: skip
    assert open_checkpoint(RUN).state["hooks"] == {"Watch": {"total": 3}}
    assert fit(second, overrides=("train.max_steps=5", *settings[1:])) == 0
    assert second.calls[:2] == [("start", 3), ("step", 4)]
    assert second.total == 5
    training = [row for row in rows(RUN) if "loss" in row]
    assert [(row["step"], row["seen"]) for row in training] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]
    assert all(0.01 < row["weights/max"] < 10.0 for row in training)


def test_a_run_with_hooks_trains_alike(project: Path) -> None:
    assert fit(overrides=("run.name=straight",)) == 0
    assert fit(Watch()) == 0
    assert timeless(RUN) == timeless(Path("runs/straight"))


@pytest.mark.parametrize("stopped_after", [2, 6, 8])
def test_numbers_recorded_before_a_stop_are_in_the_row_after_it(project: Path, stopped_after: int) -> None:
    class Numbers(Hook):
        def after_step(self, t: Any, result: Any) -> None:
            for rule in ("mean", "sum", "max", "min", "last"):
                t.record(f"x/{rule}", result.loss_sum / t.state.step, rule)
            t.record("not finite", float("nan"))

    def without_time(folder: Path) -> list[list[tuple[str, Any]]]:
        mine = ("step", "loss", "loss_mean", "not finite")
        return [
            [(name, value) for name, value in row.items() if name in mine or name.startswith("x/")]
            for row in rows(folder)
        ]

    every = "monitor.log_every=4"
    assert fit(Numbers(), overrides=("run.name=straight", every)) == 0
    asked = {stopped_after: Request(stop="enough")}
    assert fit(Numbers(), Asks(asked), overrides=(every,)) == 75
    assert fit(Numbers(), overrides=(every,)) == 0
    assert without_time(RUN) == without_time(Path("runs/straight"))
    assert {"x/mean", "x/last", "not finite"} <= rows(RUN)[1].keys()


def test_a_state_that_json_does_not_have_ends_the_run_saved_and_names_the_hook(project: Path) -> None:
    class Lost(Hook):
        def state(self) -> dict[str, Any]:
            return {"best": float("inf")}

    with pytest.raises(HookError, match=r"the hook .*Lost failed in state: ValueError"):
        fit(Lost())
    assert open_checkpoint(RUN).step >= 5
    assert last_event()["lost_steps"] == 0


class Asks(Hook):
    """Makes its requests after given steps."""

    def __init__(self, requests: Mapping[int, Request]) -> None:
        self.requests = requests

    def request(self, t: Any) -> Request | None:
        return self.requests.get(t.state.step)


def test_the_step_at_which_an_asked_evaluation_ends_a_run_has_a_row(project: Path) -> None:
    asked = {2: Request(evaluate=True), 3: Request(evaluate=True)}
    settings = (
        "optimizer.learning_rate=1e-30",
        "evaluate.early_stopping=1",
        "evaluate.every_steps=50",
        "monitor.log_every=5",
    )
    assert fit(Asks(asked), overrides=settings) == 0
    assert [row["step"] for row in rows(RUN) if "loss" in row] == [1, 2, 3]
    assert [row["step"] for row in rows(RUN) if "eval_loss" in row] == [2, 3]


def test_requests_save_evaluate_and_finish(project: Path) -> None:
    asked = {3: Request(save=True), 4: Request(evaluate=True), 6: Request(max_steps=7)}
    assert fit(Asks(asked), overrides=("checkpoint.every_steps=0",)) == 0
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == ["step-00000003", "step-00000007"]
    assert [row["step"] for row in rows(RUN) if "eval_loss" in row] == [4, 7]
    assert last_event()["event"] == "done"
    assert open_checkpoint(RUN).state["progress"]["max_steps"] == 7
    assert [event["max_steps"] for event in recorded("max_steps")] == [7]


def test_a_hook_stops_the_run_which_goes_on_later(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(Asks({4: Request(stop="the loss has settled")})) == 75
    assert open_checkpoint(RUN).step == 4
    assert last_event()["reason"] == "the hook Asks: the loss has settled"
    assert "stopped by the hook Asks: the loss has settled after step 4 of 12" in capsys.readouterr().out
    assert fit() == 0
    assert open_checkpoint(RUN).step == 12


class Fails(Hook):
    """Raises in one of its methods."""

    name = "fragile"

    def __init__(self, method: str, error: Exception) -> None:
        def raises(*arguments: Any) -> Any:
            raise error

        setattr(self, method, raises)


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("request", 1),
        ("after_step", 2),
        ("after_save", 6),
        ("after_evaluate", 5),
        ("state", 6),
        ("on_end", 12),
    ],
)
def test_a_hook_that_raises_ends_the_run_saved_and_is_named(project: Path, method: str, step: int) -> None:
    with pytest.raises(
        HookError, match=f"the hook fragile failed in {method}: ZeroDivisionError: boom"
    ) as raised:
        fit(Fails(method, ZeroDivisionError("boom")), overrides=("evaluate.every_steps=4",))
    assert isinstance(raised.value.__cause__, ZeroDivisionError), "its traceback is there"
    assert open_checkpoint(RUN).step == step
    assert (last_event()["event"], last_event()["lost_steps"]) == ("fault", 0)
    assert "HookError: the hook fragile failed" in last_event()["reason"]
    assert fit() == 0


def test_a_hook_that_fails_before_the_first_step_is_on_record(project: Path) -> None:
    with pytest.raises(HookError, match="failed in on_start: ZeroDivisionError: boom"):
        fit(Fails("on_start", ZeroDivisionError("boom")))
    assert events(RUN) == ["start", "fault"]


def test_a_message_for_users_is_kept_and_names_the_hook(project: Path) -> None:
    with pytest.raises(UserError, match=r"the hook fragile: no such probe\. Saved runs/tiny/"):
        fit(Fails("after_step", UserError("no such probe.")))


def test_what_is_no_request_is_named(project: Path) -> None:
    class Wrong(Hook):
        def request(self, t: Any) -> Any:
            return True

    with pytest.raises(
        HookError, match=r"the hook .*Wrong failed in request: TypeError: .* True, neither a Request"
    ):
        fit(Wrong())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"hooks": (Watch,)}, r"is no instance of llmkit\.Hook; give an instance of it: Watch\(\.\.\.\)"),
        ({"sinks": (print,)}, r"<built-in function print> is no instance of llmkit\.Sink$"),
    ],
)
def test_what_is_no_hook_or_sink_is_refused(project: Path, given: dict[str, Any], says: str) -> None:
    loaded = load("tiny.yaml", [])
    with pytest.raises(UserError, match=says):
        train(loaded, Options(), started=0.0, environment={}, **given)


def test_two_hooks_of_one_name_are_refused(project: Path) -> None:
    with pytest.raises(UserError, match="two hooks are named 'Watch'; give each its own `name`"):
        fit(Watch(), Watch())


def test_a_sink_gets_every_row_and_one_that_raises_is_dropped(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keeps(Sink):
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def write(self, row: Mapping[str, Any]) -> None:
            self.rows.append(dict(row))

    class Breaks(Sink):
        def write(self, row: Mapping[str, Any]) -> None:
            raise ConnectionError("no route to host")

    keeps = Keeps()
    assert fit(overrides=("evaluate.every_steps=6",), sinks=(Breaks(), keeps)) == 0
    assert [(row["step"], "eval_loss" in row) for row in keeps.rows] == [
        (row["step"], "eval_loss" in row) for row in rows(RUN)
    ]
    printed = capsys.readouterr().out
    assert "Breaks is dropped: ConnectionError: no route to host; metrics.jsonl has every row" in printed


def test_sinks_get_none_for_a_number_that_is_not_finite_and_may_change_their_rows(project: Path) -> None:
    class Diverges(Hook):
        def after_step(self, t: Any, result: Any) -> None:
            t.record("probe", torch.tensor(float("nan")))

    class Changes(Sink):
        def __init__(self) -> None:
            self.probes: list[Any] = []

        def write(self, row: Any) -> None:
            self.probes += [row.pop("probe")] if "loss" in row else []

    first, second = Changes(), Changes()
    assert fit(Diverges(), sinks=(first, second)) == 0
    assert first.probes == second.probes == [None] * 12
    assert all(row["probe"] is None for row in rows(RUN) if "loss" in row)


def test_nothing_of_a_hook_is_lost_where_a_device_scalar_is_recorded(project: Path) -> None:
    class Norms(Hook):
        def after_step(self, t: Any, result: Any) -> None:
            t.record("norm/again", result.grad_norm, reduce="last")
            t.record("norm/half", torch.tensor(0.5) * result.grad_norm)

    assert fit(Norms()) == 0
    for row in rows(RUN):
        if "loss" in row:
            assert row["norm/again"] == pytest.approx(row["grad_norm"], rel=1e-6)
            assert row["norm/half"] == pytest.approx(row["grad_norm"] / 2, rel=1e-6)
