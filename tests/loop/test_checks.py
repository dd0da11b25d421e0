"""One of two ranks has a fault in its numbers: it is found, named, and not saved."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.loop.checks import Checks
from tests.program import events, losses, make_project, recorded
from tests.ranks import run_ranks

LAYOUTS = {
    "ddp": ["parallel.zero_stage=0"],
    "stage1": ["parallel.zero_stage=1"],
    "zero1": ["parallel.zero_stage=1", "parallel.engine=deepspeed"],
    "zero2": ["parallel.zero_stage=2"],
    "zero3": ["parallel.zero_stage=3"],
    "tensor": ["parallel.tensor_parallel_size=2"],
}
SETTINGS = ["train.max_steps=6", "checkpoint.every_steps=3", "optimizer.eps=1e-5"]
FAULTS = {
    "plain": ("none", ["faults.check_replicas_every=0"]),
    "checked": ("none", ["faults.check_replicas_every=1", "faults.repeat_every=2"]),
    "nan": ("nan", []),
    "unsteady": ("unsteady", ["faults.repeat_every=5"]),
    "flipped": ("flipped", ["faults.check_replicas_every=2"]),
}


USUAL = ("ddp", "zero3", "tensor")
"""The other layouts are tried by `make test-all`."""


@cache
def folder(usual: bool, base: Path) -> Path:
    """Runs with each fault under several layouts, named LAYOUT-FAULT; codes.json has their exit codes."""
    folder = base / f"usual-{usual}"
    make_project(folder)
    cases = {
        f"{layout}-{name}": (fault, [*SETTINGS, *of_layout, *of_fault])
        for layout, of_layout in LAYOUTS.items()
        for name, (fault, of_fault) in FAULTS.items()
        if (layout in USUAL) == usual
    }
    codes = run_ranks(2, "tests.loop.check_cases:runs", joined=False, folder=str(folder), cases=cases)
    assert codes[0] == codes[1]
    (folder / "codes.json").write_text(json.dumps(dict(zip(cases, codes[0], strict=True))))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checks")


@pytest.fixture(
    params=[pytest.param(each, marks=[] if each in USUAL else pytest.mark.exhaustive) for each in LAYOUTS]
)
def layout(request: pytest.FixtureRequest, base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder(request.param in USUAL, base))
    return str(request.param)


def code(name: str) -> Any:
    return json.loads(Path("codes.json").read_text())[name]


def test_checks_change_nothing_and_find_nothing_in_a_run_without_faults(layout: str) -> None:
    assert code(f"{layout}-checked") == code(f"{layout}-plain") == 0
    assert losses(f"{layout}-checked") == losses(f"{layout}-plain")
    assert set(events(Path(f"runs/{layout}-checked"))) == {"start", "save", "done"}


@pytest.mark.drill(
    "D23", injection="the gradient of one of two ranks is NaN, under each layout",
    expected="the step is skipped on all, the rank is named",
)  # fmt: skip
def test_the_rank_whose_gradient_is_not_finite_is_named_and_all_skip(layout: str, measured: Any) -> None:
    assert code(f"{layout}-nan") == 0
    (event,) = recorded("nonfinite_gradient", Path(f"runs/{layout}-nan"))
    assert event["step"] == 3
    assert event["ranks"] == ([0, 1] if layout == "tensor" else [1]), "such peers share activations"
    measured("steps until it is on record", event["step"] - 3, "")
    clean, spoilt = losses(f"{layout}-plain"), losses(f"{layout}-nan")
    assert spoilt[:3] == clean[:3] and spoilt[3] != clean[3], "the third update was left out"


@pytest.mark.drill(
    "D24", injection="one element of a gradient changes in every second pass of one of two ranks",
    expected="the repetition names the rank, nothing is saved",
)  # fmt: skip
def test_a_rank_that_computes_something_else_the_second_time_is_named(layout: str, measured: Any) -> None:
    assert code(f"{layout}-unsteady") == 1
    (event,) = recorded("computation_differs", Path(f"runs/{layout}-unsteady"))
    measured("steps until the rank is named", event["step"] - 5, "")
    assert event["step"] == 5 and 1 in event["ranks"]
    assert event["ranks"] == ([0, 1] if layout == "tensor" else [1])
    assert [row["step"] for row in recorded("save", Path(f"runs/{layout}-unsteady"))] == [3]
    (fault,) = recorded("fault", Path(f"runs/{layout}-unsteady"))
    assert "computed the same micro-batch again with another result" in fault["reason"]


@pytest.mark.drill(
    "D26", injection="one bit of a weight flips on one of two ranks", expected="found at the next comparison"
)
def test_a_wrong_bit_in_a_copy_of_a_weight_is_found_and_not_saved(layout: str, measured: Any) -> None:
    if layout == "zero3":
        assert code(f"{layout}-flipped") == 0, "no rank has a copy of another one's part"
        return
    assert code(f"{layout}-flipped") == 1
    (event,) = recorded("replicas_differ", Path(f"runs/{layout}-flipped"))
    measured("steps until it is found", event["step"] - 4, "")
    assert event["step"] == 4 and event["ranks"] == [0, 1] and not event["found"]
    assert len(event["tensors"]) == 1
    (fault,) = recorded("fault", Path(f"runs/{layout}-flipped"))
    assert "hold different values, and it cannot be told which are right" in fault["reason"]
    assert [row["step"] for row in recorded("save", Path(f"runs/{layout}-flipped"))] == [3]


@pytest.mark.exhaustive
@pytest.mark.drill(
    "D24", injection="the gradient of one of three ranks is a million times too large",
    expected="the rank is named in its step, and on all ranks a micro-batch is computed again",
)  # fmt: skip
def test_one_of_three_ranks_whose_gradient_is_far_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Any
) -> None:
    make_project(tmp_path)
    layouts = ("ddp", "stage1", "zero3")
    cases = {layout: ("huge", [*SETTINGS, *LAYOUTS[layout]]) for layout in layouts}
    codes = run_ranks(3, "tests.loop.check_cases:runs", joined=False, folder=str(tmp_path), cases=cases)
    assert codes == [[0] * len(cases)] * 3
    monkeypatch.chdir(tmp_path)
    for layout in layouts:
        (event,) = recorded("gradient_outlier", Path(f"runs/{layout}"))
        assert event["ranks"] == [1]
        measured("steps until it is on record", event["step"] - 3, "")
        assert "computed again (gradient_outlier), with the same result" in _log_of(layout)


def _log_of(run: str) -> str:
    return "".join(path.read_text() for path in Path(f"runs/{run}/logs").glob("*rank-00000*"))


def checks_of(ranks: int, found: list[Any]) -> Checks:
    def record(name: str, **fields: Any) -> None:
        found.append((name, fields["ranks"], fields["hosts"]))

    events = SimpleNamespace(record=record)
    console = SimpleNamespace(note=lambda text: None)
    hosts = [f"n{rank // 2}" for rank in range(ranks)]
    t: Any = SimpleNamespace(events=events, console=console, hosts=hosts, state=SimpleNamespace(step=100))
    return Checks(t)


def test_a_gradient_far_above_those_of_the_others_is_named() -> None:
    found: list[Any] = []
    checks = checks_of(4, found)
    checks.gradients(5, [1.0, 2.0, 1.5, 300.0])
    assert not found and not checks.suspicion, "data differ that much"
    checks.gradients(6, [1.0, 2.0, 1e12, 1.5])
    assert found == [("gradient_outlier", [2], ["n1"])] and checks.suspicion == "gradient_outlier"
    two = checks_of(2, found)
    two.gradients(6, [1.0, 1e12])
    assert len(found) == 1, "of two nobody knows which is right"


def test_who_is_to_blame_for_gradients_that_are_not_finite() -> None:
    found: list[Any] = []
    checks = checks_of(4, found)
    assert checks.blame() == ("", [])
    checks.gradients(7, [1.0, float("nan"), 1.0, float("inf")])
    assert found == [("nonfinite_gradient", [1, 3], ["n0", "n1"])]
    assert checks.blame() == ("on rank 1 (n0) and rank 3 (n1)", ["n0", "n1"])
    checks.gradients(8, [float("nan")] * 4)
    assert checks.blame() == ("", []), "a loss that has diverged is nobody's fault"


def test_of_many_suspicions_only_some_cost_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated: list[int] = []
    checks = checks_of(4, [])
    t: Any = checks._t
    monkeypatch.setattr("llmkit.loop.checks.repeat", lambda *_: repeated.append(t.state.step))
    t.config = SimpleNamespace(faults=SimpleNamespace(repeat_every=0))
    t.log, t.mesh = SimpleNamespace(warmed_up=True), {("data", "context"): SimpleNamespace(rank=0)}
    batch: Any = None
    for t.state.step in (100, 101, 119, 120, 121):
        checks.gradients(t.state.step, [1.0, 1.0, 1e12, 1.0])
        t.agreed = SimpleNamespace(repeat=bool(checks.suspicion))
        checks.before_step(batch)
    assert repeated == [100, 120]
