"""A run that fails at every start is not started for ever."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import UserError
from llmkit.loop.failed_starts import check_progress
from tests.program import at_step, events, recorded, train

START, FAULT, SAVE = ({"event": name, "reason": "it broke"} for name in ("resume", "fault", "save"))


def test_three_failures_without_a_checkpoint_are_enough() -> None:
    check_progress([])
    check_progress([SAVE, START, FAULT, START, FAULT, START])
    with pytest.raises(UserError, match=r"last 3 starts of this run have failed .* by: it broke"):
        check_progress([SAVE, START, FAULT, START, FAULT, START, FAULT])
    with pytest.raises(UserError):
        check_progress([SAVE, *[START, FAULT] * 2, START, START, FAULT])  # one was killed in between


@pytest.mark.parametrize("name", ["save", "refused", "stop", "data_change"])
def test_progress_a_change_and_a_refusal_begin_anew(name: str) -> None:
    check_progress([*[START, FAULT] * 2, {"event": name}, START, FAULT])


@pytest.mark.drill(
    "D41", injection="the same batch fails at every start", expected="the fourth start only says why"
)
def test_a_batch_that_fails_each_time_stops_the_run(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measured: Any
) -> None:
    def fall() -> None:
        raise ZeroDivisionError("a bad batch")

    for steps in (7, 2, 2):  # a checkpoint is saved at step 5
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            at_step(patch, steps, fall)
            train()
    assert len(recorded("fault")) == 3 and len(recorded("save")) == 1
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setenv("MAX_STARTS", "")  # a batch script counts the starts
        at_step(patch, 2, fall)
        train()
    capsys.readouterr()
    assert train() == 2
    assert "the last 4 starts of this run have failed" in capsys.readouterr().err
    assert events(project / "runs" / "tiny")[-1] == "refused"
    measured("starts that failed, one of them under a batch script", len(recorded("fault")), "")
    assert train() == 0, "somebody has mended it and tries again"
