"""`llmkit checkpoint save`: asks a run by a file, and waits for the answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoints import request as module
from llmkit.cli import main
from llmkit.ownership.owner import Owner
from llmkit.ownership.take import take
from llmkit.run_folder import LOCK, SAVE
from tests.limits import HANG

RUN = Path("runs/tiny")


def event(name: str, **fields: Any) -> None:
    with open(RUN / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": name, "time": "2026-11-29T20:00:00+00:00", **fields}) + "\n")


@contextmanager
def under_way(answer: Callable[[], None] | None = None) -> Iterator[None]:
    """The run has an owner, which answers the request in a thread."""

    def silent(line: str) -> None: ...

    def wait() -> None:
        until = time.monotonic() + HANG
        while not (RUN / SAVE).exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert (RUN / SAVE).read_text().endswith("asks for a checkpoint\n")
        if answer is not None:
            answer()

    owner = Owner.of_this_process("llmkit train", {})
    claim = take(RUN, owner, lock_name=LOCK, take_over=False, ask=silent, note=silent)
    event("resume", step=8)
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        claim.release()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def test_it_waits_until_the_checkpoint_is_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def saved() -> None:
        event("save", step=7, path="step-00000007")  # one that was under way already
        time.sleep(0.1)
        event("save", step=9, path="step-00000009")
        (RUN / SAVE).unlink()

    with under_way(saved):
        assert main(["checkpoint", "save", "runs/tiny"]) == 0
    assert capsys.readouterr().out == "runs/tiny/checkpoints/step-00000009\n"


def test_a_step_that_is_saved_already_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with under_way(lambda: (RUN / SAVE).unlink()):
        assert main(["checkpoint", "save", "runs/tiny"]) == 0
    assert capsys.readouterr().out == "its newest checkpoint is runs/tiny/checkpoints/step-00000008\n"


def test_programs_get_the_folder_and_whether_it_is_new(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for answer in ({"path": "step-00000009"}, {}):

        def answered(saved: dict[str, str] = answer) -> None:
            if saved:
                event("save", step=9, **saved)
            (RUN / SAVE).unlink()

        with under_way(answered):
            assert main(["checkpoint", "save", "runs/tiny", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    root = "runs/tiny/checkpoints"
    assert found[0] == {"path": f"{root}/step-00000009", "saved": True}
    assert found[1] == {"path": f"{root}/step-00000008", "saved": False}


def test_a_save_that_fails_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with under_way(lambda: event("save_failed", step=9, reason="no space left on device")):
        assert main(["checkpoint", "save", "runs/tiny"]) == 1
    assert "the run runs/tiny cannot save: no space left on device" in capsys.readouterr().err
    assert not (RUN / SAVE).exists()


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_that_ends_meanwhile(project: Path, capsys: pytest.CaptureFixture[str], saves: bool) -> None:
    def ended() -> None:
        if saves:
            event("save", step=9, path="step-00000009")
        event("fault", step=9, reason="the loss is NaN")

    with under_way(ended):
        assert main(["checkpoint", "save", "runs/tiny"]) == (0 if saves else 1)
    printed = capsys.readouterr()
    assert "step-00000009" in printed.out if saves else "before it has saved; its newest" in printed.err


def test_it_does_not_wait_for_ever(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with under_way():
        assert main(["checkpoint", "save", "runs/tiny", "--wait", "1"]) == 1
    assert "has not saved in time; it is training" in capsys.readouterr().err
    assert not (RUN / SAVE).exists()


def test_a_run_that_is_not_under_way_is_not_asked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "save", "runs/tiny"]) == 2
    err = capsys.readouterr().err
    assert "is not under way, it finished after step 8; its newest checkpoint is" in err
    assert not (RUN / SAVE).exists()
    assert main(["checkpoint", "save", "corpus"]) == 2
    assert "corpus: is no run folder" in capsys.readouterr().err
