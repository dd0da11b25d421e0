"""Other trackers get what metrics.jsonl holds, by accelerate's classes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker

from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.errors import UserError
from llmkit.monitor import trackers
from llmkit.monitor.sink import SinkThread
from llmkit.monitor.trackers import IDS, TRACKERS, Start, Tracker, TrackerSink
from tests.program import rows, train


class StandIn(GeneralTracker):
    """A tracker that keeps what it is given."""

    name = "stand_in"
    requires_logging_directory = False
    started: ClassVar[list[StandIn]] = []

    def __init__(self, run_name: str, **arguments: Any) -> None:
        super().__init__()
        self.run_name, self.arguments = run_name, arguments
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.finished = False

    def start(self) -> None:
        if self.arguments.get("refuses"):
            raise ConnectionError("no server")
        self.started.append(self)

    @property
    def tracker(self) -> Any:
        return f"run {len(self.started)}"

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """mlflow is the stand-in, found where accelerate finds its classes; those that were started."""

    def arguments(start: Start) -> dict[str, Any]:
        return {"run_name": start.name, "known": start.known, "first": start.first_step}

    monkeypatch.setattr(StandIn, "started", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", StandIn)
    monkeypatch.setitem(TRACKERS, "mlflow", Tracker("json", arguments, str, r"[^\w/]"))
    return StandIn.started


@pytest.fixture
def config(project: Path) -> Config:
    return load("tiny.yaml", ["run.name=mine"]).config


def test_rows_become_numbers_at_their_step(config: Config, tmp_path: Path, stand_in: list[StandIn]) -> None:
    sink = TrackerSink("mlflow", tmp_path, config)
    row = {"step": 3, "loss": 2.5, "eval/hella/acc,none": 1, "mfu": None, "mfu_peak": "it", "skipped": True}
    sink.write(row)
    sink.write({"step": 4, "mfu_peak": "of it"})
    sink.close()
    (used,) = stand_in
    assert used.logged == [(3, {"loss": 2.5, "eval/hella/acc_none": 1.0, "skipped": 1.0})]
    assert (used.run_name, used.arguments["first"], used.finished) == (tmp_path.name, 3, True)
    assert used.settings["run.name"] == "mine" and used.settings["monitor.log_every"] == 1


def test_trackers_that_start_at_once_are_all_known_later(
    config: Config, tmp_path: Path, stand_in: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", StandIn)
    monkeypatch.setitem(TRACKERS, "aim", TRACKERS["mlflow"])
    write = trackers.write_json

    def slow(*what: Any) -> None:
        time.sleep(0.1)  # both have read the file by now, if they may
        write(*what)

    monkeypatch.setattr(trackers, "write_json", slow)
    sinks = [SinkThread(TrackerSink(name, tmp_path, config), print) for name in ("aim", "mlflow")]
    for thread in sinks:
        thread.write({"step": 1, "loss": 1.0})
    for thread in sinks:
        thread.close()
    assert {"aim", "mlflow"} <= json.loads((tmp_path / IDS).read_text()).keys()


def test_no_secret_reaches_a_tracker(
    project: Path, tmp_path: Path, stand_in: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-hub")
    config = load("tiny.yaml", ["run.name=canary-of-the-hub"]).config
    TrackerSink("mlflow", tmp_path, config).write({"step": 1, "loss/https://u:canary@host/x": 1.0})
    (used,) = stand_in
    assert used.settings["run.name"] == "... (not shown)" and "canary" not in str(used.logged)


def test_a_resume_goes_on_with_the_run_and_a_copy_does_not(
    config: Config, tmp_path: Path, stand_in: list[StandIn]
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    for _ in range(2):
        TrackerSink("mlflow", first, config).write({"step": 1, "loss": 1.0})
    copy = tmp_path / "copy"
    first.rename(copy)
    TrackerSink("mlflow", copy, config).write({"step": 1, "loss": 1.0})
    assert [each.arguments["known"] for each in stand_in] == [None, "run 1", None]
    assert [bool(each.settings) for each in stand_in] == [True, False, True]
    assert json.loads((copy / IDS).read_text())["mlflow"] == "run 3"


def test_a_tracker_that_fails_is_dropped_with_its_name(
    config: Config, tmp_path: Path, stand_in: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Tracker("json", lambda start: {"run_name": "", "refuses": True}))
    notes: list[str] = []
    thread = SinkThread(TrackerSink("mlflow", tmp_path, config), notes.append)
    thread.write({"step": 1, "loss": 1.0})
    thread.close()
    assert notes == [
        "the metric sink mlflow is dropped: ConnectionError: no server; metrics.jsonl has every row"
    ]


def test_a_missing_package_is_named(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"monitor\.trackers: aim is not installed \(pip install aim\); else"):
        TrackerSink("aim", tmp_path, config)


def test_every_tracker_is_one_of_accelerates_and_has_one_run_a_folder(tmp_path: Path) -> None:
    assert TRACKERS.keys() <= tracking.LOGGER_TYPE_TO_CLASS.keys() - {"wandb"}
    start = Start(tmp_path / "run", "project", "run", 1, "known")
    for name in TRACKERS.keys() - {"comet_ml", "swanlab"}:  # which need their packages
        arguments = TRACKERS[name].arguments(start)
        tracking.LOGGER_TYPE_TO_CLASS[name](**arguments)
        lasting = {start.key, start.key[:21], "known", "allow", "tensorboard", str(start.folder / "dvclive")}
        assert lasting & set(map(str, arguments.values())), name


def written(folder: Path) -> dict[str, dict[int, float]]:
    """The newest value of each name and step in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_every_number_of_a_run_and_of_its_resume_is_in_tensorboard(project: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `dev` brings it")
    settings = ["monitor.trackers=[tensorboard]", "monitor.log_every=3", "evaluate.every_steps=6"]
    assert train("train.max_steps=6", *settings) == 0
    assert train("train.max_steps=12", *settings) == 0
    folder = project / "runs" / "tiny"
    found = written(folder / "tensorboard")
    for name in ("loss", "loss_mean", "grad_norm", "learning_rate", "tokens", "eval_loss"):
        wanted = {row["step"]: row[name] for row in rows(folder) if row.get(name) is not None}
        assert found[name] == pytest.approx(wanted, rel=1e-6), name
    assert list(found["loss"]) == [1, 3, 6, 9, 12]


def test_steps_that_are_done_again_replace_those_of_before_in_tensorboard(
    config: Config, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra `dev` brings it")
    for steps, value in ((range(1, 7), 1.0), (range(4, 8), 2.0)):
        sink = TrackerSink("tensorboard", tmp_path, config)
        for step in steps:
            sink.write({"step": step, "loss": value, "eval_loss": None, "mfu_peak": "a label"})
        sink.close()
    found = written(tmp_path / "tensorboard")
    assert found["loss"] == dict.fromkeys((1, 2, 3), 1.0) | dict.fromkeys((4, 5, 6, 7), 2.0)
