from __future__ import annotations

import os
import queue
import select
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.live import workers as workers_module
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Lane
from llmkit.data.live.workers import LiveRows, Worker, _fill, make_rows
from llmkit.data.sources.records import PromptCompletion, Skipped
from llmkit.errors import RunFault, UserError
from tests.data.live.fakes import BROKEN, BUG, KILL, REFUSE, STALL, live, plain
from tests.limits import HANG

ROOT = Path(__file__).parents[3]


def two_sources() -> dict[int, LiveSource]:
    """Sources at places 0 and 2, one with prompts and left-out documents."""
    texts = live([[f"{unit}:{number}" * 3 for number in range(9)] for unit in range(5)], lane_limit=3)
    pairs: list[Any] = [PromptCompletion("ask" * number, "say") for number in range(5)]
    mixed = live([[*pairs, Skipped("broken JSON", "x"), "ab~"], [REFUSE, "abcd"]], stream_id=1)
    return {0: texts, 2: mixed}


def lanes_of(sources: dict[int, LiveSource]) -> dict[tuple[int, int], Any]:
    return {(place, lane): None for place, source in sources.items() for lane in range(source.lanes)}


def all_rows(sources: dict[int, LiveSource], count: int) -> list[tuple[int, int]]:
    """A schedule of so many rows of each lane, in turns of different length."""
    keys = [key for turn in range(count) for key in lanes_of(sources) for _ in range(1 + turn % 2)]
    return keys[: count * len(lanes_of(sources))]


def serving(
    sources: dict[int, LiveSource], schedule: list[Any], workers: int, stall_seconds: float = HANG
) -> Any:
    return closing(LiveRows(sources, lanes_of(sources), schedule, workers, stall_seconds))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rows_are_the_same_for_any_number_of_workers(workers: int) -> None:
    sources = two_sources()
    schedule = all_rows(sources, 20)
    lanes = {key: Lane(sources[key[0]], key[1]) for key in lanes_of(sources)}
    cursors: dict[tuple[int, int], Any] = dict.fromkeys(lanes)
    with serving(sources, schedule, workers) as rows:
        for key in schedule[:60]:
            row = rows.take(*key)
            assert plain(row) == plain(next(lanes[key]))
            cursors[key] = row.cursor
    with closing(LiveRows(sources, cursors, schedule[60:], 2 - workers, HANG)) as rows:  # others go on
        for key in schedule[60:]:
            assert plain(rows.take(*key)) == plain(next(lanes[key]))


class Full(queue.Queue[Any]):
    """A queue that says when something has no room in it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.is_full = threading.Event()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if self.full():
            self.is_full.set()
        super().put(item, block, timeout)


def test_a_process_makes_the_rows_of_its_own_lanes_while_there_is_room() -> None:
    made = Full(3)
    source, lanes = live([["abcdefg"] * 50], lane_limit=1, window=1), dict[Any, Lane]()
    rows = make_rows({0: source}, {(0, 0): None}, [(0, 0), (1, 0), (0, 1)] * 20, lanes)
    thread = threading.Thread(target=_fill, args=(made, rows), daemon=True)
    thread.start()
    assert made.is_full.wait(HANG)
    assert len(source.reader.read_numbers) <= 6  # type: ignore[attr-defined]
    found = [made.get() for _ in range(20)]
    thread.join(HANG)
    assert [key for key, _ in found] == [(0, 0)] * 20 and made.empty()
    assert list(lanes) == [(0, 0)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("failing", "kind", "message"),
    [
        ((0, 1), RunFault, r"^source toy: /files/1\.jsonl:1: cannot be read$"),
        ((2, 0), UserError, r"^source toy: /files/0\.jsonl:1: token id 0"),
    ],
)
def test_an_error_comes_in_the_place_of_the_row_and_stays(
    workers: int, failing: tuple[int, int], kind: type[Exception], message: str
) -> None:
    sources = {
        0: live([["a" * 8], [BROKEN]], lane_limit=2),
        1: live([["abc", Skipped("x", "y")]], max_epochs=1),
        2: live([["abc\x00"]], errors="raise"),
    }
    schedule = [(0, 0)] * 5 + [failing, (0, 0)]
    with serving(sources, schedule, workers) as rows:
        assert sum(rows.take(0, 0).tokens.size for _ in range(5)) == 45
        for key in (failing, failing, (0, 0)):
            with pytest.raises(kind, match=message):
                rows.take(*key)


def test_a_process_that_dies_stalls_or_has_a_bug_ends_the_run() -> None:
    cases: list[tuple[str, float, type[Exception], str]] = [
        (KILL, HANG, RunFault, r"source toy: lane 0 of 1, which reads /files/0\.jsonl: .*exit code -9"),
        (STALL, 0.5, RunFault, r"source toy: lane 0 of 1, .* /files/0\.jsonl: no row came for 0\.5 s"),
        (BUG, HANG, RuntimeError, r"ZeroDivisionError: a bug"),
    ]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving({4: live([["abc" * 9, text]], window=1)}, [(4, 0)] * 9, 1, stall))
            for text, stall, _, _ in cases
        ]
        for rows, (_, _, kind, message) in zip(servers, cases, strict=True):
            with pytest.raises(kind, match=message):
                for _ in range(9):
                    rows.take(4, 0)


def taken_while_closed(begun: threading.Event, closed: threading.Event) -> list[str]:
    """What a `take` raises where the rows are closed once it has begun to wait."""
    rows = LiveRows({0: live([[STALL]])}, {(0, 0): None}, [(0, 0)], 1, HANG)
    errors: list[str] = []

    def take() -> None:
        try:
            rows.take(0, 0)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert begun.wait(HANG)
    rows.close()
    closed.set()
    thread.join(HANG)
    rows.close()
    return errors


def test_closing_ends_a_take_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, poll = threading.Event(), Connection.poll

    def noted(pipe: Connection, seconds: float = 0.0) -> bool:
        begun.set()
        return poll(pipe, seconds)

    monkeypatch.setattr(Connection, "poll", noted)
    assert taken_while_closed(begun, threading.Event()) == ["RunFault: the data is closed"]


@pytest.mark.parametrize("method", ["poll", "recv", "_recv"])
def test_a_pipe_that_is_closed_is_the_end_of_the_data(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Whatever the thread that takes rows does with it at that moment, as where a machine is busy."""
    begun, closed, real = threading.Event(), threading.Event(), getattr(Connection, method)

    def held(pipe: Connection, *given: Any) -> Any:
        begun.set()
        assert closed.wait(HANG)
        return real(pipe, *given)

    monkeypatch.setattr(workers_module, "CLOSE_SECONDS", 0.0)
    if method != "poll":
        monkeypatch.setattr(Connection, "poll", lambda pipe, seconds: True)
    monkeypatch.setattr(Connection, method, held)
    assert taken_while_closed(begun, closed) == ["RunFault: the data is closed"]


@pytest.mark.parametrize("when", ["start", "begin"])
def test_an_interrupt_while_processes_start_ends_those_that_run(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    calls: list[Worker] = []
    call = getattr(Worker, when)

    def interrupted(worker: Worker, *given: Any) -> None:
        call(worker, *given)
        calls.append(worker)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Worker, when, interrupted)
    sources = {0: live([["abc"]] * 3, lane_limit=3)}
    with pytest.raises(KeyboardInterrupt):
        LiveRows(sources, lanes_of(sources), [], 3, HANG)
    assert len(calls) == 2
    assert all(worker.exit_code(0.0) is not None for worker in calls)


def test_a_cursor_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"source toy, lane 0: .*not usable"):
        LiveRows({0: live([["abc"]])}, {(0, 0): [1, 2]}, [], 1, 10.0)


def test_rows_name_what_is_read_and_can_be_closed_while_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "CLOSE_SECONDS", 0.1)
    begun, hanging = threading.Event(), threading.Event()
    source = live([["abcdefg"]])
    read = source.reader.read

    def hang(*where: int) -> Any:
        begun.set()
        assert hanging.wait(HANG)
        return read(*where)

    source.reader.read = hang  # type: ignore[method-assign]
    rows = LiveRows({0: source}, {(0, 0): None}, [(0, 0)], 0, HANG)
    thread = threading.Thread(target=rows.take, args=(0, 0), daemon=True)
    thread.start()
    assert begun.wait(HANG)
    rows.close()
    assert rows.activity == "source toy: lane 0 of 1, which reads /files/0.jsonl"
    hanging.set()
    thread.join(HANG)
    with pytest.raises(RunFault, match="the data is closed"):
        rows.take(0, 0)


SCRIPT = """
import os, signal, sys
from llmkit.data.live.workers import LiveRows
from tests.data.live.fakes import TELL_TORCH, live

rows = LiveRows({0: live([[TELL_TORCH]])}, {(0, 0): None}, [(0, 0)] * 99, 1, 600.0)
row = rows.take(0, 0)
worker = rows._workers[0].pid
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    os.kill(worker, number)
taken = [rows.take(0, 0) for _ in range(20)]
print(worker, int(row.tokens[1]), len(taken), flush=True)
sys.stdin.readline()
"""
"""Without a guard: were it run once more in its worker, that would start another one."""


def test_workers_outlive_the_jobs_signals_and_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for how in ("returns", "is killed"):
        with ExitStack() as stack:
            parent = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(script)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            )
            stack.callback(parent.kill)
            assert parent.stdin is not None and parent.stdout is not None
            worker, modules, rows = map(int, parent.stdout.readline().split())
            assert (modules, rows) == (ord("-"), 20)  # no torch
            handle = os.pidfd_open(worker)
            if how == "returns":
                parent.stdin.close()
                assert parent.wait(HANG) == 0
            else:
                parent.kill()
            assert ended(handle)


def ended(handle: int) -> bool:
    """Whether the process ends."""
    with os.fdopen(handle):
        return bool(select.select([handle], [], [], HANG)[0])
