"""Checkpoints that are written beside training."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import RunFault
from llmkit.loop import host_copies, saving
from llmkit.loop.trainer import Trainer
from tests.chosen import chosen, few_at_every_commit
from tests.limits import HANG
from tests.program import at_step, make_project, recorded, rows, timeless, train
from tests.ranks import run_ranks

RUN = Path("runs/tiny")
BACKGROUND = "checkpoint.background=true"
FEW = ("train.max_steps=6", "checkpoint.every_steps=2", BACKGROUND)


LAYOUTS = {
    "muon": ["optimizer.name=muon"],
    "zero2": ["parallel.zero_stage=2"],
    "zero3-tp2": ["parallel.zero_stage=3", "parallel.tensor_parallel_size=2"],
}


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


@pytest.mark.drill(
    "D18",
    injection="a disk so slow that a save beside training is not over when the next one is due",
    expected="no step waits for it, the next save does; nothing is lost",
)
def test_a_save_that_is_not_over_is_waited_for_by_the_next_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    opens_when_waited_for(monkeypatch, gate)
    seen: list[list[int]] = []
    at_step(monkeypatch, 4, lambda: seen.append(saved()))
    at_step(monkeypatch, 5, lambda: seen.append(saved()))
    assert train(*FEW) == 0
    assert seen == [[], [2]] and saved() == [2, 4, 6]


def opens_when_waited_for(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Lets a save be written once the thread that trains waits for it."""
    settle, wait = saving.Saves.settle, saving.wait

    def opening(saves: saving.Saves) -> None:
        if saves.in_flight:
            gate.open.set()
        settle(saves)

    def waiting(*arguments: Any) -> Any:  # after a fault, as long as that may take
        gate.open.set()
        return wait(*arguments)

    monkeypatch.setattr(saving.Saves, "settle", opening)
    monkeypatch.setattr(saving, "wait", waiting)


def test_a_stop_waits_for_it_and_saves_what_came_after(
    project: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    opens_when_waited_for(monkeypatch, gate)
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*FEW) == 75
    assert saved() == [2, 3] and gate.threads == ["save", "MainThread"]


def test_a_fault_waits_for_it(project: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    opens_when_waited_for(monkeypatch, gate)

    def broken() -> None:
        raise RunFault("a step is broken")

    at_step(monkeypatch, 4, broken)
    assert train(*FEW) == 1
    (fault,) = recorded("fault")
    assert saved() == [2] and (fault["saved_step"], fault["lost_steps"]) == (2, 1)


def test_a_fault_does_not_wait_for_a_disk_that_hangs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()

    def hanging(*arguments: Any, **named: Any) -> Path:
        over.wait(HANG)
        raise RunFault("the disk is gone")

    def broken() -> None:
        raise RunFault("a step is broken")

    monkeypatch.setattr(saving, "write_and_commit", hanging)
    monkeypatch.setattr(saving, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(saving, "CLOSE_SECONDS", 0.1)
    at_step(monkeypatch, 4, broken)
    assert train(*FEW) == 1
    over.set()
    assert [(row["step"], row["reason"]) for row in recorded("save_failed")] == [
        (2, "it was not on disk 0 s after the fault that ends the run")
    ]
    (fault,) = recorded("fault")
    assert (fault["saved_step"], fault["lost_steps"]) == (None, 3)
    assert "NOT SAVED, runs/tiny/checkpoints/step-00000002: it was not on disk" in capsys.readouterr().out


def test_only_a_broken_connection_behind_a_failed_save_ends_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a save says of it hides what gloo said, which the ranks need to find out who has gone."""
    closed = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    for cause, code in ((RuntimeError("a tensor has another shape"), 0), (closed, 1)):

        def failing(*arguments: Any, cause: Exception = cause, **named: Any) -> Path:
            raise RunFault("cannot be saved") from cause

        monkeypatch.setattr(saving, "write_and_commit", failing)
        settings = [f"run.name=run-{code}", "train.max_steps=3", "checkpoint.every_steps=2", BACKGROUND]
        if code:
            with pytest.raises(RuntimeError, match="Connection closed by peer"):
                train(*settings)
        else:
            assert train(*settings) == 1, "the save at the end must be there"
        failed = [row["step"] for row in recorded("save_failed", Path(f"runs/run-{code}"))]
        assert failed == ([] if code else [2])


@pytest.mark.drill(
    "D16",
    injection="the disk has no room for a save that is written beside training",
    expected="all ranks notice it after the same step, training goes on, the next save is there",
)
def test_one_that_fails_is_on_record_and_training_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, "step-00000002")
    assert train(*FEW) == 0
    assert saved("save_failed") == [2] and saved() == [4, 6]
    assert "NOT SAVED, training goes on: cannot save checkpoint" in capsys.readouterr().out
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_many_that_fail_end_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, "step-")
    assert train("train.max_steps=20", *FEW[1:], "checkpoint.max_failed_saves=2") == 1
    assert "2 saves in a row have failed (checkpoint.max_failed_saves)" in capsys.readouterr().err
    assert saved("save_failed") == [2, 4] and recorded("fault")[0]["saved_step"] is None


def full_disk(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """There is no room for the tensors of checkpoints with such names."""
    real = os.open

    def full(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and f"{folder}" in str(path) and "pieces" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", full)


def test_a_bug_in_it_ends_the_run_with_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> Path:
        raise ZeroDivisionError("in the thread")

    monkeypatch.setattr(saving, "write_and_commit", broken)
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        train(*FEW)


def test_without_memory_for_a_copy_training_waits(
    project: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_copies, "free_memory", lambda: 1000)
    assert train(*FEW) == 0
    assert saved() == [2, 4, 6] and set(gate.threads) == {"MainThread"}
    assert capsys.readouterr().out.count("training will wait while checkpoints are written") == 1


def test_a_run_that_goes_back_goes_to_the_checkpoint_in_flight(
    project: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    opens_when_waited_for(monkeypatch, gate)
    asks = [True]

    def spike(trainer: Trainer) -> None:
        if trainer.state.step == 3 and asks.pop() if asks else False:
            trainer.rollbacks.asked = 3

    real = Trainer._requests
    monkeypatch.setattr(Trainer, "_requests", lambda t: (spike(t), real(t))[1])
    assert train(*FEW, "faults.on_spike=rollback", "faults.rollback_margin=0") == 0
    (back,) = recorded("rollback")
    assert (back["from_step"], back["to_step"]) == (3, 2) and saved() == [2, 4, 6]


@pytest.fixture(scope="module")
def layouts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four ranks with each chosen layout, beside training and not; all in one launch."""
    cases = {name: LAYOUTS[name] for name in chosen(request, "layout")}
    folder = tmp_path_factory.mktemp("layouts")
    make_project(folder)
    codes = run_ranks(
        4, "tests.loop.saving_cases:layouts", joined=False, may_die=range(4),
        folder=str(folder), cases=cases,
    )  # fmt: skip
    assert codes == [[*[0] * 2 * len(cases), 1]] * 4
    return folder / "runs"


@pytest.mark.parametrize("layout", few_at_every_commit(LAYOUTS, ("muon", "zero3-tp2")))
def test_ranks_write_what_they_would_have_waited_for(layouts: Path, layout: str) -> None:
    waits, beside = layouts / f"{layout}-waits", layouts / f"{layout}-beside"
    for step in (2, 4):
        name = f"checkpoints/step-{step:08d}"
        assert files(beside / name) == files(waits / name)
        assert len(list((beside / name).glob("pieces-*"))) == 4
    assert timeless(beside) == timeless(waits)
    saves = {folder.name[5:]: [row["step"] for row in recorded("save", folder)] for folder in (beside, waits)}
    assert set(map(tuple, saves.values())) == {(2, 4)}


def test_what_is_being_written_is_saved_where_one_rank_fails(layouts: Path) -> None:
    run = layouts / "fails"
    assert [row["step"] for row in recorded("save", run)] == [2]
    (fault,) = recorded("fault", run)
    assert (fault["saved_step"], fault["lost_steps"]) == (2, 1) and "rank 1 cannot go on" in fault["reason"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
