"""Which lines of the record are given to W&B, and when: each once, whatever happened before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.redaction import Redactor
from llmkit.monitor.events import EventLog
from llmkit.monitor.jsonlines import JsonLines
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_feed import Feed
from llmkit.monitor.wandb_journal import Journal


class FakeRun:
    """Takes what a run of wandb takes."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.alerts: list[str] = []
        self.summary: dict[str, Any] = {}
        self.refuses = False

    def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        assert commit
        if self.refuses:
            raise ConnectionResetError("gone")
        self.lines.append((step, values))

    def alert(self, title: str, text: str, level: str, wait_duration: float) -> None:
        self.alerts.append(title)

    @property
    def steps(self) -> list[int]:
        return [values["train/step"] for _, values in self.lines]


@pytest.fixture
def record(tmp_path: Path) -> SimpleNamespace:
    (tmp_path / "wandb").mkdir()
    return SimpleNamespace(
        folder=tmp_path,
        metrics=MetricsFile(tmp_path / "metrics.jsonl"),
        media=JsonLines(tmp_path / "media.jsonl"),
        events=EventLog(tmp_path / "events.jsonl"),
        said=[],
    )


@pytest.fixture
def feed(record: SimpleNamespace) -> Callable[..., Feed]:
    """A new start of the mirror; `lines`: that the W&B run has."""

    def make(lines: int | None = None, **more: Any) -> Feed:
        journal = Journal(record.folder / "wandb" / "journal")
        journal.keep(len(journal) if lines is None else lines)
        return Feed(record.folder, journal, Redactor({}), record.said.append, **more)

    return make


def test_each_row_is_given_once_and_a_torn_one_only_when_it_is_whole(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    run, first = FakeRun(), feed()
    assert not first.pass_on(run), "there is no file yet"
    record.metrics.append({"step": 1})
    with open(record.metrics.path, "ab") as file:
        file.write(b'{"step"')
        file.flush()
        assert first.pass_on(run)
        assert run.steps == [1]
        file.write(b": 2}\n")
    first.pass_on(run)
    assert not first.pass_on(run)
    assert [step for step, _ in run.lines] == [0, 1] and run.steps == [1, 2]


def test_a_damaged_line_is_passed_over(record: SimpleNamespace, feed: Callable[..., Feed]) -> None:
    run = FakeRun()
    record.metrics.append({"step": 1})
    with open(record.metrics.path, "ab") as file:
        file.write(b"\x00\xff\n[1]\n")
    record.metrics.append({"step": 2})
    record.media.append({"step": 2, "kind": "nothing"})
    feed().pass_on(run)
    assert run.steps == [1, 2]
    assert record.said == ["an item of media.jsonl is passed over (there is no kind 'nothing')"]


def test_a_later_start_goes_on_where_the_server_is(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    for step in range(1, 6):
        record.metrics.append({"step": step, "loss": 1.0})
    feed().pass_on(FakeRun())
    for lines, steps in ((5, []), (3, [4, 5]), (0, [1, 2, 3, 4, 5])):
        run = FakeRun()
        feed(lines).pass_on(run)
        assert run.steps == steps, lines
        assert [step for step, _ in run.lines] == list(range(lines, 5))


def test_rows_that_were_cut_back_and_redone_are_given_again(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    for step in range(1, 6):
        record.metrics.append({"step": step, "loss": 1.0})
    old = feed()
    old.pass_on(FakeRun())
    record.metrics.cut_back(3)
    for step in range(4, 9):
        record.metrics.append({"step": step, "loss": 2.0})
    run = FakeRun()
    feed().pass_on(run)
    assert run.steps == [4, 5, 6, 7, 8]
    assert [step for step, _ in run.lines] == [5, 6, 7, 8, 9]
    late = FakeRun()
    old.pass_on(late)
    assert late.lines == [], "the mirror of the earlier start has nothing to do with the new file"


def test_among_redone_rows_one_that_is_as_it_was_hides_none(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    table = {"step": 4, "kind": "table", "name": "samples", "columns": ["a"], "rows": [["x"]]}
    for step in range(1, 5):
        record.metrics.append({"step": step, "seconds": 1.0})
    record.metrics.append({"step": 4, "eval_loss": 2.0})
    record.media.append({"step": 3, "kind": "nothing"})
    record.media.append(table)
    feed().pass_on(FakeRun())
    record.metrics.cut_back(2)
    for step in (3, 4):
        record.metrics.append({"step": step, "seconds": 2.0})
    record.metrics.append({"step": 4, "eval_loss": 2.0})
    run = FakeRun()
    feed().pass_on(run)
    assert run.steps == [3, 4, 4]
    feed().pass_on(run)
    assert run.steps == [3, 4, 4], "and the media once"


def test_a_row_is_given_once_whatever_fails_after_it(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    class NoSummary:
        def update(self, values: dict[str, Any]) -> None:
            raise ConnectionResetError("gone")

    run, only = FakeRun(), feed()
    run.summary = NoSummary()  # type: ignore[assignment]
    record.metrics.append({"step": 1, "eval_loss": 2.0})
    with pytest.raises(ConnectionResetError):
        only.pass_on(run)
    only.pass_on(run)
    assert run.steps == [1]


def test_names_of_columns_hold_no_secret(record: SimpleNamespace, feed: Callable[..., Feed]) -> None:
    run = FakeRun()
    record.metrics.append({"step": 1, "loss/https://u:canary@host/x?token=canary": 2.0})
    feed().pass_on(run)
    (_, values), *_ = run.lines
    assert list(values) == ["train/step", "data/loss/https://host/x?... (not shown)"]


def test_a_row_that_is_refused_is_given_again(record: SimpleNamespace, feed: Callable[..., Feed]) -> None:
    run, only = FakeRun(), feed()
    record.metrics.append({"step": 1})
    run.refuses = True
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            only.pass_on(run)
    run.refuses = False
    only.pass_on(run)
    assert run.lines == [(0, {"train/step": 1})]
    assert len(only.journal) == 1


def test_on_a_full_disk_rows_wait_until_there_is_room(
    record: SimpleNamespace, feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, only = FakeRun(), feed()
    record.metrics.append({"step": 1})
    only.pass_on(run)
    record.metrics.append({"step": 2})
    with monkeypatch.context() as full:
        full.setattr("os.pwrite", lambda *_: 0)
        with pytest.raises(OSError, match="No space left"):
            only.pass_on(run)
    assert run.steps == [1], "nothing is given that the journal does not know"
    only.pass_on(run)
    assert run.steps == [1, 2] and len(only.journal) == 2


def test_media_that_wandb_does_not_take_are_left_and_rows_go_on(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    table = {"step": 1, "kind": "table", "name": "samples", "columns": ["a"], "rows": [["x"]]}
    record.media.append(table)

    class NoTables(FakeRun):
        def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
            if "samples/samples" in values:
                raise ValueError("the server is strange")
            super().log(values, step, commit)

    run, first = NoTables(), feed()
    with pytest.raises(ValueError, match="strange"):
        first.pass_on(run)
    assert first.media_are_taken
    for step in (1, 2):
        record.metrics.append({"step": step})
        first.pass_on(run)
    assert run.steps == [1, 2] and not first.media_are_taken
    assert record.said == ["media.jsonl is left for later (ValueError: the server is strange)"]
    later = FakeRun()
    assert feed().pass_on(later) and later.lines[0][1]["samples/samples"].data == [["x"]]


def test_the_best_so_far_counts_rows_of_earlier_starts(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    record.metrics.append({"step": 1, "eval_loss": 2.0})
    feed().pass_on(FakeRun())
    record.metrics.append({"step": 2, "eval_loss": 3.0})
    run, second = FakeRun(), feed()
    second.pass_on(run)
    assert run.summary == {}
    assert second.best.summary() == {"best/eval_loss": 2.0, "best/eval_loss_step": 1}


def test_alerts_are_for_what_happens_now(record: SimpleNamespace, feed: Callable[..., Feed]) -> None:
    record.metrics.append({"step": 1, "skipped": True})
    record.events.record("fault", step=1, reason="long ago")
    sizes = {"m": record.metrics.path.stat().st_size, "e": (record.folder / "events.jsonl").stat().st_size}
    record.metrics.append({"step": 2, "skipped": True})
    record.events.record("stop", step=2, reason="SIGTERM")
    run = FakeRun()
    mirror = feed(alert=True, first_news=sizes)
    mirror.pass_on(run)
    assert run.alerts == ["gradient not finite", "stopped early"]
    run = FakeRun()
    feed(0, alert=True, first_news=mirror.news).pass_on(run)
    assert run.steps == [1, 2] and run.alerts == [], "wandb was started anew: no alert twice"
    feed(0, first_news=sizes).pass_on(run)
    assert run.alerts == []


def test_the_table_of_events_is_given_where_there_are_new_ones(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    run, first = FakeRun(), feed()
    first.give_events(run)
    assert run.lines == []
    record.events.record("start", step=0, reason="https://u:p@host/x")
    first.give_events(run)
    first.give_events(run)
    feed().give_events(run)
    (line,) = run.lines
    assert line[1]["faults/events"].data[0][1:] == ["start", 0, "reason: https://host/x"]
    record.events.record("done", step=9)
    feed().give_events(run)
    assert len(run.lines[1][1]["faults/events"].data) == 2


def test_a_file_that_is_cut_back_while_it_is_read_is_followed(
    record: SimpleNamespace, feed: Callable[..., Feed]
) -> None:
    """As by a rollback: what W&B has of the steps that stay is not given again."""
    one, run = feed(), FakeRun()
    for step in (1, 2, 3):
        record.metrics.append({"step": step, "loss": 1.0})
    one.pass_on(run)
    record.metrics.append({"step": 4, "loss": 9.0})  # not read before it is dropped
    record.events.record("rollback", step=3, to_step=1)
    record.metrics.cut_back(1)
    record.metrics.append({"step": 2, "loss": 0.5})
    assert one.pass_on(run) and run.steps == [1, 2, 3, 2]
    record.metrics.append({"step": 3, "loss": 0.5})
    assert one.pass_on(run) and run.steps == [1, 2, 3, 2, 3]
    assert not one.pass_on(run)
