"""A checkpoint on request, by the file `SAVE` in the run folder."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import main
from llmkit.loop.save_request import SaveRequest
from tests.limits import HANG
from tests.program import at_step, recorded, start_ranks, train

REQUEST = Path("runs/tiny/SAVE")
FEW = ("train.max_steps=6", "checkpoint.every_steps=0")


def saved() -> list[int]:
    return [event["step"] for event in recorded("save")]


def test_a_run_saves_once_for_each_request(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    def ask() -> None:
        REQUEST.touch()

    at_step(monkeypatch, 2, ask)
    at_step(monkeypatch, 4, lambda: (left.append(REQUEST.exists()), ask()))
    assert train(*FEW) == 0
    assert saved() == [2, 4, 6] and left == [False] and not REQUEST.exists()


def test_a_request_from_before_the_start_is_answered(project: Path) -> None:
    REQUEST.parent.mkdir(parents=True)
    REQUEST.touch()
    assert train(*FEW) == 0
    assert saved() == [1, 6] and not REQUEST.exists()


def test_a_save_that_fails_is_not_tried_at_every_step(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and "step-00000002/pieces" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", full)
    at_step(monkeypatch, 2, REQUEST.touch)
    assert train(*FEW) == 0
    assert [event["step"] for event in recorded("save_failed")] == [2]
    assert saved() == [6] and not REQUEST.exists()  # the last one is the answer


def test_a_newer_request_is_left(project: Path) -> None:
    class Folder:
        path = Path()

        def remove(self, name: str) -> None:
            Path(name).unlink()

    class Trainer:
        mesh = type("Mesh", (), {"rank": 0})
        state = type("State", (), {"step": 7})
        folder = Folder()

    hook, trainer = SaveRequest(), Trainer()
    Path("SAVE").touch()
    assert hook.request(trainer).save and hook.request(trainer) is None  # type: ignore
    Path("newer").touch()
    Path("newer").replace("SAVE")
    hook.after_save(trainer, Path("step-00000007"))  # type: ignore
    assert Path("SAVE").exists() and hook.request(trainer).save  # type: ignore
    hook.after_save(trainer, Path("step-00000006"))  # type: ignore
    assert Path("SAVE").exists(), "that save was begun before it was asked for"
    hook.after_save(trainer, Path("step-00000007"))  # type: ignore
    assert not Path("SAVE").exists()


@pytest.mark.exhaustive
def test_the_command_gets_a_checkpoint_of_two_ranks(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = start_ranks(project, 2, "train", "tiny.yaml", "train.max_steps=100000", FEW[1])
    while not Path("runs/tiny/metrics.jsonl").exists() and processes[0].poll() is None:
        time.sleep(0.1)
    assert main(["checkpoint", "save", "runs/tiny"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_dir() and saved() == [int(path.name[5:])]
    Path("runs/tiny/STOP").touch()
    assert [process.wait(HANG) for process in processes] == [75, 75], processes[0].output()
