"""Checkpoints that are written beside training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.loop import saving
from tests.limits import HANG
from tests.program import at_step, make_project, recorded, rows, timeless, train

RUN = Path("runs/tiny")
BACKGROUND = "checkpoint.background=true"
FEW = ("train.max_steps=6", "checkpoint.every_steps=2", BACKGROUND)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Gate:
    """Holds what the thread of a save does until `open` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.threads = threading.Event(), list[str]()
        real = saving.write_and_commit

        def held(*arguments: Any, **named: Any) -> Path:
            self.threads.append(threading.current_thread().name)
            assert threading.current_thread() is threading.main_thread() or self.open.wait(HANG)
            return real(*arguments, **named)

        monkeypatch.setattr(saving, "write_and_commit", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def saved(event: str = "save") -> list[int]:
    return [row["step"] for row in recorded(event)]


def files(folder: Path) -> dict[str, bytes]:
    """All of a checkpoint but its manifest, which has times and the settings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_it_is_the_checkpoint_that_training_would_have_waited_for(project: Path) -> None:
    assert train("run.name=waits", "train.max_steps=6", "checkpoint.every_steps=2") == 0
    assert train(*FEW) == 0
    assert saved() == [2, 4, 6]
    for step in (2, 4, 6):
        name = f"checkpoints/step-{step:08d}"
        assert files(RUN / name) == files(Path("runs/waits") / name)
    assert timeless(RUN) == timeless(Path("runs/waits"))


def test_steps_go_on_while_it_is_written_and_it_is_on_record_once_it_is_there(
    project: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    seen: list[tuple[int, bool, list[int]]] = []

    def look() -> None:
        seen.append((len(rows(RUN)), (RUN / "checkpoints/step-00000002").exists(), saved()))
        gate.open.set()

    at_step(monkeypatch, 4, look)
    assert train(*FEW[:1], "checkpoint.every_steps=2", BACKGROUND) == 0
    assert seen[0][1:] == (False, []), "step 3 was done meanwhile"
    assert saved() == [2, 4, 6] and gate.threads == ["save", "save", "save"]
    first = recorded("save")[0]
    assert 0.0 < first["stall_seconds"] < first["seconds"]
    assert first["account"]["useful"] < recorded("save")[1]["account"]["useful"]
