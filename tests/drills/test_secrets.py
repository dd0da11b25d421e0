"""Keys in the environment, in URLs, in messages of errors: nothing that a run leaves behind has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.api import load, train
from llmkit.loop.hook import Hook
from llmkit.loop.hook_list import HookError
from tests.program import events

CANARIES = {
    "HF_TOKEN": "canary-of-the-hub",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "AWS_SECRET_ACCESS_KEY": "canary/of+the+store/0123456789",
    "MY_DB_PASSWORD": "canary-of-a-database",
}


class Quotes(Hook):
    """Fails as libraries do: their message quotes what they were given."""

    def after_step(self, t: Any, result: Any) -> None:
        t.console.note(f"asking https://user:canary-in-a-url@host/x?signature=canary-in-a-query {CANARIES}")
        t.record_event("asked", answer=f"401 for {CANARIES['HF_TOKEN']}", api_key="canary-by-name")
        raise ValueError("x" * 460 + f" https://user:canary-in-a-url@host/x was refused: {CANARIES}")


@pytest.mark.drill(
    "D42",
    injection="keys in the environment, in the arguments of the program and in the message of an error",
    expected="in no file that the run leaves behind",
)
def test_no_file_of_a_run_holds_a_key(
    project: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., None]
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    command = ["sweep.py", "--wandb-key", "canary-in-the-arguments", "--token=canary-in-the-arguments"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(HookError, match="canary-in-a-url"):  # the caller's exception stays as it is
        train(load("tiny.yaml", ["monitor.report=true"]), hooks=[Quotes()])

    run = Path("runs/tiny")
    assert {"asked", "fault", "save"} <= set(events(run))
    files = [path for path in project.rglob("*") if path.is_file()]
    assert {"events.jsonl", "rank-00000.log", "manifest.json"} <= {path.name for path in files}
    found = [
        (path, canary)
        for path in files
        for canary in (b"canary", *(value.encode() for value in CANARIES.values()))
        if canary in path.read_bytes()
    ]
    assert found == []
    measured("files with a key", len(found), f"of {len(files)}")
