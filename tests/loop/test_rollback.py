"""Runs that meet rows of noise: they go back, and on without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.keeping import read_best
from llmkit.checkpoint.read import Checkpoint, newest
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.loop.control import NOTHING, Control
from llmkit.loop.phases import Name, Phases
from llmkit.loop.rollback import Rollbacks
from llmkit.monitor.media import read_media
from tests.loop.poison import poisoned
from tests.program import at_step, events, losses, make_project, recorded, rows, timeless, train
from tests.ranks import run_ranks

SETTINGS = (
    "train.max_steps=40", "checkpoint.every_steps=5", "checkpoint.keep_last=20", "evaluate.every_steps=10",
    "monitor.spike_window=10", "monitor.log_samples=true", "faults.on_spike=rollback",
    "faults.rollback_margin=2", "monitor.statistics_every=4",
)  # fmt: skip
BAD = range(92, 96)
"""The rows of step 24."""


def weights(name: str) -> dict[str, Any]:
    checkpoint = open_checkpoint(Path("runs") / name)
    found = {
        (kind, tensor): checkpoint.read(tensor, kind).tolist()
        for kind in checkpoint.kinds()
        for tensor in checkpoint.names(kind)
    }
    return {"step": checkpoint.step, "state": checkpoint.state, **found}


def stop_dead() -> None:
    raise ZeroDivisionError("killed")


@pytest.fixture
def undisturbed(project: Path) -> None:
    """A run, named so, whose 24th step is noise."""
    with poisoned(BAD):
        assert train("run.name=undisturbed", *SETTINGS) == 0


def same_outcome(name: str) -> None:
    assert timeless(Path("runs") / name) == timeless(Path("runs/undisturbed"))
    mine, other = weights(name), weights("undisturbed")
    for one in (mine, other):
        one["state"] = {key: one["state"][key] for key in ("progress", "data", "updates", "details")}
    assert mine == other


@pytest.mark.drill(
    "D25", injection="four rows of noise", expected="back to a checkpoint of before, on without these rows"
)
def test_the_run_goes_back_and_leaves_out_the_rows_that_did_harm(undisturbed: None, measured: Any) -> None:
    folder = Path("runs/undisturbed")
    (spike,) = recorded("loss_spike", folder)
    assert (spike["step"], spike["of"]) == (24, "loss")
    (event,) = recorded("rollback", folder)
    assert (event["step"], event["to_step"], event["rows"]) == (24, 20, [84, 96])  # steps 22 to 24
    measured("steps done again", event["from_step"] - event["to_step"], "")
    assert event["from_step"] == 25, "one process acts after the step in which the spike was read"
    steps = [row["step"] for row in rows(folder) if "loss" in row]
    assert steps == list(range(1, 41)), "each step has one row"
    lines = (folder / "samples" / "rank-00000.jsonl").read_text().splitlines()
    used = [position for line in lines for position in json.loads(line)["positions"]]
    assert used == [*range(84), *range(96, 40 * 4 + 12)]
    assert max(losses("undisturbed")[10:]) < spike["median"] + 1.0
    assert open_checkpoint(folder).state["data"]["omitted"] == [[84, 96]]
    assert [row["step"] for row in rows(folder) if "eval_loss" in row] == [10, 20, 30, 40]
    assert rows(folder)[-1]["step"] == 40
    items = [item["step"] for item in read_media(folder) if item["name"] == "gradients/norm"]
    assert items == list(range(4, 41, 4)), "what is recorded beside rows, too"


def test_a_run_that_is_killed_after_the_rollback_goes_on_the_same(
    undisturbed: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a checkpoint knows of it: then the event does."""
    at_step(monkeypatch, 28, stop_dead)  # 25 steps, then 21, 22 and the 23rd
    with poisoned(BAD):
        with pytest.raises(ZeroDivisionError):
            train("run.name=killed", *SETTINGS)
        assert events(Path("runs/killed"))[-2:] == ["rollback", "fault"]
        assert train("run.name=killed", *SETTINGS) == 0
    same_outcome("killed")
    assert len(recorded("rollback", Path("runs/killed"))) == 1


def test_a_run_that_is_killed_in_the_rollback_finds_the_same_spike_again(
    undisturbed: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with poisoned(BAD):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr("llmkit.monitor.goodput.Ledger.take_back", lambda *arguments: stop_dead())
            train("run.name=killed", *SETTINGS)
        assert "rollback" not in events(Path("runs/killed"))
        assert train("run.name=killed", *SETTINGS) == 0
    same_outcome("killed")


def test_a_spike_that_is_seen_by_a_save_is_not_saved(project: Path) -> None:
    with poisoned(range(96, 100)):  # step 25, at which a save is due
        assert train(*SETTINGS) == 0
    (event,) = recorded("rollback")
    assert (event["from_step"], event["to_step"]) == (25, 20)
    saves = [row["step"] for row in recorded("save")]
    assert saves == [5, 10, 15, 20, 25, 30, 35, 40], "step 25 only after the rollback"


def test_a_spike_in_the_last_step_is_one_too(project: Path) -> None:
    with poisoned(range(156, 160)):
        assert train(*SETTINGS) == 0
    (event,) = recorded("rollback")
    assert (event["from_step"], event["to_step"]) == (40, 35)
    assert [row["step"] for row in rows(Path("runs/tiny")) if "loss" in row] == list(range(1, 41))


def test_the_run_ends_where_it_goes_back_too_often(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that comes is noise: each time a window of it is left out, and the next rows are no better."""
    with poisoned(range(92, 10_000)):
        assert train(*SETTINGS, "faults.max_rollbacks=2") == 1
    going_back = recorded("rollback")
    assert [event["to_step"] for event in going_back] == [20, 15]
    message = "a spike again after 2 rollbacks without a new checkpoint between them (faults.max_rollbacks)"
    assert message in capsys.readouterr().err
    assert open_checkpoint(Path("runs/tiny")).step == 15
    with poisoned(range(92, 10_000)):
        assert train(*SETTINGS, "faults.max_rollbacks=2") == 1, "the next start counts on"
    assert recorded("rollback") == going_back


def test_going_back_may_take_as_long_as_a_start(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To verify a large checkpoint takes longer than a step, after which a rank would count as hung."""
    spans: list[str] = []
    phases: list[list[str]] = []
    span = Phases.span

    @contextmanager
    def noted(self: Phases, name: Name, limit: float | None = None) -> Iterator[None]:
        spans.append(name)
        with span(self, name, limit):
            yield
        spans.pop()

    def verified(*arguments: Any, **options: Any) -> Checkpoint | None:
        phases.append(list(spans))
        return newest(*arguments, **options)

    monkeypatch.setattr(Phases, "span", noted)
    monkeypatch.setattr("llmkit.loop.rollback.newest", verified)
    with poisoned(BAD):
        assert train(*SETTINGS, "train.max_steps=25") == 0
    assert phases == [["start"]]


def test_the_run_goes_back_to_no_checkpoint_from_before_its_data_changed(project: Path) -> None:
    """In those data the rows of the spike stand elsewhere, if there are any."""
    Path("more").mkdir()
    Path("more/a.txt").write_text(Path("corpus/000.txt").read_text() * 40)
    sources = [{"type": "text", "path": path, "name": path} for path in ("corpus", "more")]
    settings = [*SETTINGS, "faults.rollback_margin=10"]
    assert train(*settings, "train.max_steps=20", f"data.sources={json.dumps(sources[:1])}") == 0
    with poisoned(range(108, 112)):  # step 28
        assert train(*settings, f"data.sources={json.dumps(sources)}", "--allow-data-change") == 0
    (event,) = recorded("rollback")
    assert (event["step"], event["to_step"]) == (28, 25), "and not 15, which is from before the margin"
    assert [row["step"] for row in rows(Path("runs/tiny")) if "loss" in row] == list(range(1, 41))
    (change,) = open_checkpoint(Path("runs/tiny")).state["data"]["changes"]
    assert change["rows"] == 80


def test_an_end_that_was_asked_for_meanwhile_holds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the time budget, while ranks tell each other of the spike: it asks once."""
    monkeypatch.setattr(Control, "close", lambda control: NOTHING._replace(max_steps=30))
    with poisoned(BAD):
        assert train(*SETTINGS) == 0
    assert len(recorded("rollback")) == 1
    assert open_checkpoint(Path("runs/tiny")).step == 30


def test_without_a_checkpoint_the_run_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with poisoned(BAD):
        assert train(*SETTINGS, "checkpoint.every_steps=0", "train.max_steps=30") == 0
    assert "rollback" not in events(Path("runs/tiny"))
    assert "no checkpoint is from before step 24" in capsys.readouterr().out


def test_what_is_left_out_is_read_from_the_events() -> None:
    one, two = {"event": "rollback", "rows": [8, 16]}, {"event": "rollback", "rows": [4, 6]}
    assert Rollbacks([one, two]).windows == [(8, 16), (4, 6)]
    assert Rollbacks([one, {"event": "save"}, two]).without_save == 1
    assert Rollbacks([one, {"event": "data_change"}]).windows == []
    for damaged in (None, [1], ["a", 2]):
        assert Rollbacks([{"event": "rollback", "rows": damaged}]).windows == []


LAYOUTS = {
    "ddp": ["parallel.zero_stage=0"],
    "muon": ["parallel.zero_stage=1", "optimizer.name=muon"],
    "zero1": ["parallel.zero_stage=1", "parallel.engine=deepspeed"],
    "zero3": ["parallel.zero_stage=3", "checkpoint.background=true"],
    "offload": ["parallel.zero_stage=2", "parallel.offload=cpu"],
    "tensor": ["parallel.tensor_parallel_size=2"],
}


USUAL = ("muon", "zero3")
"""The other layouts are tried by `make test-all`."""


@cache
def on_two_ranks(usual: bool, folder: Path) -> Path:
    """Runs with several layouts, whose 24th step is noise, and of one process with each optimizer."""
    make_project(folder)
    common = [
        *SETTINGS, "train.max_steps=32", "train.gradient_clipping=0.5", "model.hidden_dropout=0",
        "optimizer.eps=1e-5", "optimizer.learning_rate=0.006",
    ]  # fmt: skip
    cases = {
        name: [*common, *overrides]
        for name, overrides in LAYOUTS.items()
        if (name in USUAL) == usual
    }  # fmt: skip
    codes = run_ranks(
        2, "tests.loop.rollback_cases:layouts", joined=False,
        folder=str(folder), cases=cases, bad=list(BAD),
    )  # fmt: skip
    assert codes == [[0] * len(cases)] * 2
    with pytest.MonkeyPatch.context() as patch, poisoned(BAD):
        patch.chdir(folder)
        assert train("run.name=alone", *common) == 0
        assert train("run.name=alone-muon", *common, "optimizer.name=muon") == 0
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rollback")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[] if each in USUAL else pytest.mark.exhaustive) for each in LAYOUTS]
)
def test_every_layout_goes_back_alike(name: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = name in USUAL
    monkeypatch.chdir(on_two_ranks(usual, base / f"usual-{usual}"))
    alone = "alone-muon" if name == "muon" else "alone"
    (event,) = recorded("rollback", Path("runs") / name)
    assert (event["to_step"], event["rows"]) == (20, [84, 96])
    assert event["from_step"] == 25, "a save is due, which needs to know at once"
    assert losses(name) == pytest.approx(losses(alone), rel=1e-5)
    assert open_checkpoint(Path("runs") / name).state["data"]["omitted"] == [[84, 96]]


def test_the_best_checkpoint_is_never_one_of_steps_that_were_taken_back(project: Path) -> None:
    best = ("run.name=best", "train.max_steps=28", "checkpoint.keep_best=true", "evaluate.every_steps=11")
    with poisoned(BAD):
        assert train(*SETTINGS, *best) == 0
    (event,) = recorded("rollback", Path("runs/best"))
    assert event["to_step"] == 20
    assert [event["step"] for event in recorded("best", Path("runs/best"))] == [11, 22, 22, 28]
    found = read_best(Path("runs/best/checkpoints"))
    assert found is not None and found.step == 28
