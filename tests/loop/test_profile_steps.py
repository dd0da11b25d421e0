"""`monitor.profile_steps` in runs that are made to be bound by one thing."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.load import load
from llmkit.data.loader import TrainLoader
from llmkit.errors import UserError
from llmkit.loop import profile_steps
from llmkit.loop.control import Control
from llmkit.loop.phases import Phases
from llmkit.loop.state import TrainState
from llmkit.monitor.profile import Recording
from tests.program import events, recorded, rows, train

FILES = [".json.gz", ".summary.json", ".txt"]


def summary(name: str, run: str = "tiny") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(f"runs/{run}/profile/{name}.summary.json").read_text())
    return content


def test_the_steps_that_are_asked_for_and_no_others(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("monitor.profile_steps=[3,5]", "monitor.profile_ranks=[0,2]", "train.max_steps=6") == 0
    folder = project / "runs/tiny/profile"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-3-rank-0{end}" for end in FILES]
    found = summary("step-3-rank-0")
    assert found["steps"] == 3 and found["shares"]["launch"] > 0.1  # the model is tiny
    (event,) = recorded("profile")
    assert event["verdict"] == found["verdict"] and event["path"] == "profile/step-3-rank-0.json.gz"
    printed = capsys.readouterr().out
    assert event["verdict"] in printed
    assert "profile_ranks names 2, and the last rank is 0: nothing is recorded there" in printed
    forwards = [each for each in found["operators"] if each["name"] == "aten::embedding"]
    assert forwards[0]["calls"] == 3
    trace = json.loads(gzip.decompress((folder / "step-3-rank-0.json.gz").read_bytes()))
    names = [each["name"] for each in trace["traceEvents"] if each.get("cat") == "user_annotation"]
    assert names.count("step") >= 3 and names.count("data") == 3  # phases are marked


def test_a_resume_records_what_is_left_and_a_stop_what_there_was(project: Path) -> None:
    assert train("monitor.profile_steps=[5,8]", "train.max_steps=6") == 0
    assert train("monitor.profile_steps=[5,8]", "train.max_steps=7") == 0
    assert train("monitor.profile_steps=[5,8]", "train.max_steps=12") == 0
    assert [(each["path"], each["steps"]) for each in recorded("profile")] == [
        ("profile/step-5-rank-0.json.gz", 2), ("profile/step-7-rank-0.json.gz", 1),
        ("profile/step-8-rank-0.json.gz", 1),
    ]  # fmt: skip


def test_no_message_is_under_way_when_the_profiler_ends(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch marks the end of a message in memory of the profiler, and crashes where that is gone."""
    calls = list[str]()
    stop = Recording.stop
    monkeypatch.setattr(Control, "settle", lambda control: calls.append("settle"))
    monkeypatch.setattr(Recording, "stop", lambda recording: (calls.append("stop"), stop(recording)))
    assert train("monitor.profile_steps=[2,2]", "train.max_steps=3") == 0
    assert calls == ["settle", "stop"]


def test_a_rank_has_its_share_of_the_flops(project: Path) -> None:
    """Of steps 4 to 6, each of 128 tokens of 10 FLOPs, on one of two ranks."""
    written: list[tuple[Any, ...]] = []
    found = SimpleNamespace(line=lambda: "bound")
    recording: Any = SimpleNamespace(stop=lambda: None, write=lambda *given: written.append(given) or found)
    hook = profile_steps.ProfileSteps(load("tiny.yaml", ["monitor.profile_steps=[4,6]"]).config)
    hook._recording, hook._begun_at = recording, 3
    nothing: Any = SimpleNamespace(record=lambda *given, **fields: None, note=lambda text: None)
    trainer: Any = SimpleNamespace(
        phases=Phases(), state=TrainState(step=6), mesh=SimpleNamespace(rank=1, world_size=2),
        work=SimpleNamespace(full=10.0), plan=SimpleNamespace(tokens_per_step=128),
        folder=SimpleNamespace(path=project), events=nothing, console=nothing,
        control=SimpleNamespace(settle=lambda: None),
    )  # fmt: skip
    hook.on_end(trainer)
    assert written == [(project / "profile/step-4-rank-1", 0.0, 3, 3 * 128 * 10.0 / 2)]


def test_slow_data_bound_the_steps(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following, since = TrainLoader.__next__, [time.monotonic()]

    def slow(loader: TrainLoader) -> Any:
        """By several times what a step takes, however busy the machine is."""
        time.sleep(max(0.5, min(10.0, 4.0 * (time.monotonic() - since[0]))))
        since[:] = [time.monotonic()]
        return following(loader)

    monkeypatch.setattr(TrainLoader, "__next__", slow)
    assert train("monitor.profile_steps=[3,4]", "train.max_steps=4") == 0
    assert summary("step-3-rank-0")["bound"] == "data"


def test_what_goes_wrong_does_not_end_the_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Any, device: Any) -> None:
        raise RuntimeError("already in use")

    monkeypatch.setattr(profile_steps.Recording, "__init__", refuses)
    assert train("monitor.profile_steps=[3,5]", "train.max_steps=6") == 0
    assert recorded("profile_failed")[0]["reason"] == "RuntimeError: already in use"
    assert events(project / "runs/tiny").count("profile_failed") == 1
    assert rows(project / "runs/tiny")[-1]["step"] == 6


def test_steps_in_the_wrong_order_are_refused(project: Path) -> None:
    with pytest.raises(UserError, match=r"monitor\.profile_steps .*ends before it begins"):
        load("tiny.yaml", ["monitor.profile_steps=[5,3]"])
