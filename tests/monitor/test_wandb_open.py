"""Where a W&B run stands when it is opened: what the server has decides."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.redaction import Redactor
from llmkit.monitor import wandb_open
from llmkit.monitor.wandb_feed import Feed
from llmkit.monitor.wandb_file import OnDisk
from llmkit.monitor.wandb_open import open_run
from llmkit.monitor.wandb_session import Timeouts


class Opening:
    """A run folder with rows, on a server that has so many lines of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.lines, self.said = folder, 0, list[str]()
        self.fault: Exception | None = None
        self.summary: dict[str, Any] = {}
        (folder / "wandb").mkdir()
        self.rows = [json.dumps({"step": step}).encode() + b"\n" for step in range(1, 6)]
        (folder / "metrics.jsonl").write_bytes(b"".join(self.rows))
        self.session: dict[str, Any] = {
            "mode": "online", "server": "http://x", "timeouts": Timeouts()._asdict(),
            "first_news": {"m": 1000}, "run_id": "x",
        }  # fmt: skip
        monkeypatch.setattr(wandb_open, "is_reachable", lambda *_: True)
        monkeypatch.setattr(wandb_open, "tear_down", lambda: None)
        monkeypatch.setattr(wandb_open, "init", self.init)

    def init(self, run_dir: Path, session: dict[str, Any], mode: str) -> Any:
        if mode == "online" and self.fault is not None:
            raise self.fault
        return SimpleNamespace(starting_step=self.lines, summary=self.summary)

    def given(self, **how: Any) -> tuple[str, list[int]]:
        """The mode, and the steps of the rows that are given in this start."""
        opened = open_run(self.folder, self.session, self.said.append, **how)
        steps: list[int] = []
        opened.run.log = lambda values, step, commit: steps.append(values["train/step"])
        Feed(self.folder, opened.journal, Redactor({}), self.said.append).pass_on(opened.run)
        return opened.mode, steps


@pytest.fixture
def opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opening:
    return Opening(tmp_path, monkeypatch)


def test_what_the_server_has_not_is_given_again(opening: Opening) -> None:
    assert opening.given() == ("online", [1, 2, 3, 4, 5])
    opening.lines = 3
    assert opening.given() == ("online", [4, 5])
    opening.lines = 5
    assert opening.given() == ("online", [])
    assert opening.said == []


def test_lines_of_somebody_else_are_told_and_nothing_is_given_twice(opening: Opening) -> None:
    opening.given()
    opening.lines = 7
    assert opening.given() == ("online", [])
    assert opening.said == ["the W&B run has 7 lines, of which 5 are known here: new ones follow them"]


def test_a_journal_that_is_lost_is_made_anew_by_the_step_that_the_server_has(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = [{"step": 2, "kind": "x"}, {"step": "2", "kind": "x"}, {"kind": "x"}]
    (opening.folder / "media.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in media))
    journal = opening.folder / "wandb" / "journal"
    journal.write_bytes(bytes(40))  # as a power failure may leave it
    opening.lines, opening.summary = 6, {"train/step": 3}
    assert opening.given() == ("online", [4, 5])
    assert opening.said[0] == "the W&B run has 6 lines, of which 2 are known here: new ones follow them"

    journal.unlink()
    opening.lines, opening.summary = 2, {"train/step": 3}
    assert opening.given() == ("online", [3, 4, 5]), "no more lines than the server has"

    journal.unlink()
    opening.session["mode"] = "offline"
    found = OnDisk(4, {"train/step": 4})
    monkeypatch.setattr(wandb_open, "newest_on_disk", lambda *_: found)
    assert opening.given() == ("offline", [5])


def test_a_run_that_an_older_version_has_mirrored_goes_on_where_that_was(opening: Opening) -> None:
    end = len(b"".join(opening.rows[:3]))
    state = opening.folder / "wandb" / "mirror.json"
    state.write_text(json.dumps({"offset": end, "session": 0}))
    opening.lines = 4  # a row that was cut back and redone is there twice
    assert opening.given() == ("online", [4, 5])
    assert opening.said == []
    (opening.folder / "wandb" / "journal").unlink()
    opening.session["first_news"] = {"m": len(opening.rows[0])}  # the file was cut back since
    assert opening.given() == ("online", [2, 3, 4, 5])


def test_a_server_that_does_not_take_the_run_leaves_it_offline(opening: Opening) -> None:
    opening.fault = RuntimeError("no such project")
    assert opening.given() == ("offline", [1, 2, 3, 4, 5])
    assert opening.said == ["W&B does not take the run (RuntimeError: no such project): offline"]
    with pytest.raises(RuntimeError, match="no such project"):
        opening.given(must=True)


def test_online_what_lies_offline_needs_no_upload_any_more(opening: Opening) -> None:
    file = opening.folder / "wandb" / "offline-run-20260101_100000-x" / "run-x.wandb"
    file.parent.mkdir()
    file.touch()
    opening.given()
    assert file.with_name("run-x.wandb.synced").exists(), "so that `wandb sync` leaves it out"
