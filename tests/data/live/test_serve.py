from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.live import serve
from llmkit.data.live.serve import LaneServer
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Lane, Row
from llmkit.data.live.worker import Worker
from llmkit.data.sources.records import LeftOut, Pair
from llmkit.errors import RunFault, UserError
from tests.data.live.fakes import BROKEN, BUG, KILL, REFUSE, STALL, live, plain
from tests.limits import HANG

ROOT = Path(__file__).parents[3]


def two_sources() -> dict[int, LiveSource]:
    """Sources at places 0 and 2, one with prompts and left-out documents."""
    texts = live([[f"{unit}:{number}" * 3 for number in range(9)] for unit in range(5)], lane_limit=3)
    pairs: list[Any] = [Pair("ask" * number, "say") for number in range(5)]
    mixed = live([[*pairs, LeftOut("broken JSON", "x"), "ab~"], [REFUSE, "abcd"]], number=1)
    return {0: texts, 2: mixed}


def lanes_of(sources: dict[int, LiveSource]) -> dict[tuple[int, int], Any]:
    return {(place, lane): None for place, source in sources.items() for lane in range(source.lanes)}


def serving(sources: dict[int, LiveSource], workers: int, stall_seconds: float = HANG) -> Any:
    return closing(LaneServer(sources, lanes_of(sources), workers, stall_seconds))


def next_row(lane: Lane, wanted: bool) -> Row:
    row = next(lane)
    return row if wanted else row._replace(tokens=row.tokens[:0], targets=None)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rows_are_the_same_for_any_number_of_workers(workers: int) -> None:
    sources = two_sources()
    with serving(sources, workers) as server:
        lanes = {key: Lane(sources[key[0]], key[1]) for key in lanes_of(sources)}
        for turn in range(12):
            for (place, lane), expected in lanes.items():
                wanted = [turn % 3 != 1] * (1 + turn % 2)
                taken = server.take(place, lane, wanted)
                assert [plain(row) for row in taken] == [plain(next_row(expected, each)) for each in wanted]
        cursors = {key: next(lane).cursor for key, lane in lanes.items()}
        for place, lane in lanes:
            assert [row.tokens.size for row in server.take(place, lane, [False])] == [0]
    with closing(LaneServer(sources, cursors, 2 - workers, HANG)) as server:  # others go on
        for (place, lane), expected in lanes.items():
            assert plain(server.take(place, lane, [True])[0]) == plain(next(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_come_in_the_place_of_the_row_and_stay(workers: int) -> None:
    sources = {
        0: live([["a" * 8], [BROKEN]], lane_limit=2),
        1: live([["abc", LeftOut("x", "y")]], max_epochs=1),
        2: live([["abc\x00"]], errors="raise"),
    }
    with serving(sources, workers) as server:
        assert sum(row.tokens.size for row in server.take(0, 0, [True] * 5)) == 45
        for _ in range(2):
            with pytest.raises(RunFault, match=r"^source toy: /files/1\.jsonl:1: cannot be read$"):
                server.take(0, 1, [True])
            with pytest.raises(UserError, match=r"^source toy: /files/0\.jsonl:1: token id 0"):
                server.take(2, 0, [True])
        assert server.take(0, 0, [True])[0].tokens.size == 9


def test_a_process_that_dies_stalls_or_has_a_bug_ends_the_run() -> None:
    cases: list[tuple[str, float, type[Exception], str]] = [
        (KILL, HANG, RunFault, r"source toy: lane 0 of 1, which reads /files/0\.jsonl: .*exit code -9"),
        (STALL, 0.5, RunFault, r"source toy: lane 0 of 1, .* /files/0\.jsonl: no row came for 0\.5 s"),
        (BUG, HANG, RuntimeError, r"ZeroDivisionError: a bug"),
    ]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving({4: live([["abc" * 9, text]], window=1)}, 1, stall_seconds))
            for text, stall_seconds, _, _ in cases
        ]
        for server, (_, _, kind, message) in zip(servers, cases, strict=True):
            with pytest.raises(kind, match=message):
                server.take(4, 0, [True] * 9)


def test_closing_ends_a_take_that_waits() -> None:
    server = LaneServer({0: live([[STALL]])}, {(0, 0): None}, 1, 1000.0)
    errors: list[str] = []

    def take() -> None:
        try:
            server.take(0, 0, [True])
        except RunFault as error:
            errors.append(str(error))

    thread = threading.Thread(target=take)
    thread.start()
    server.close()
    thread.join(HANG)
    assert errors == ["the data is closed"]
    server.close()


@pytest.mark.parametrize("when", ["start", "begin"])
def test_an_interrupt_while_processes_start_ends_those_that_run(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    calls: list[Worker] = []
    call = getattr(Worker, when)

    def interrupted(worker: Worker) -> None:
        call(worker)
        calls.append(worker)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Worker, when, interrupted)
    sources = {0: live([["abc"]] * 3, lane_limit=3)}
    with pytest.raises(KeyboardInterrupt):
        LaneServer(sources, lanes_of(sources), 3, HANG)
    assert len(calls) == 2
    assert all(worker.exit_code(0.0) is not None for worker in calls)


def test_a_cursor_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"source toy, lane 0: .*not usable"):
        LaneServer({0: live([["abc"]])}, {(0, 0): [1, 2]}, 1, 10.0)


def test_a_server_tells_what_it_reads_and_can_be_closed_while_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "CLOSE_SECONDS", 0.1)
    hanging = threading.Event()
    source = live([["abcdefg"]])
    read = source.reader.read

    def hang(*where: int) -> Any:
        hanging.wait()
        return read(*where)

    source.reader.read = hang  # type: ignore[method-assign]
    server = LaneServer({0: source}, {(0, 0): None}, 0, HANG)
    thread = threading.Thread(target=server.take, args=(0, 0, [True]), daemon=True)
    thread.start()
    server.close()
    assert server.activity == "source toy: lane 0 of 1, which reads /files/0.jsonl"
    hanging.set()
    thread.join(HANG)
    with pytest.raises(RunFault, match="the data is closed"):
        server.take(0, 0, [True])


SCRIPT = """
import os, signal, sys
from llmkit.data.live.serve import LaneServer
from tests.data.live.fakes import TELL_TORCH, live

server = LaneServer({0: live([[TELL_TORCH]])}, {(0, 0): None}, 1, 600.0)
row, = server.take(0, 0, [True])
worker = server._workers[0].pid
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    os.kill(worker, number)
rows = server.take(0, 0, [True] * 20)
print(worker, int(row.tokens[1]), len(rows), flush=True)
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
