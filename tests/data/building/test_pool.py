from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.building import pool
from llmkit.data.building.pool import make_parts
from llmkit.errors import RunFault, UserError
from tests.data.building.makers import Maker
from tests.limits import HANG


@pytest.mark.parametrize("workers", [0, 3])
def test_all_parts_are_made_and_come_in_order(tmp_path: Path, workers: int) -> None:
    told: list[int] = []
    parts = [4, 1, 2, 7, 9, 3]
    assert list(make_parts(Maker(tmp_path, {}), parts, workers, told.append)) == parts
    assert sorted(told) == sorted(parts)
    makers = {int((tmp_path / str(part)).read_text()) for part in parts}
    assert (makers == {os.getpid()}) == (workers == 0)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("user", UserError, "part 3 is the user's mistake"),
        ("run", RunFault, "part 3 cannot be read"),
        ("disk", OSError, "No space left on device"),
        ("bug", RuntimeError, "(?s)part 3 of a source:.*Traceback.*ZeroDivisionError: part 3"),
        ("killed", RunFault, r"a process that tokenizes ended with exit code -9 .*fewer --workers"),
    ],
)
def test_an_error_of_a_worker_is_raised_in_its_parent(
    tmp_path: Path, fault: str, error: type[Exception], message: str
) -> None:
    made = make_parts(Maker(tmp_path, {3: fault}), range(8), 1)
    with pytest.raises(error, match=message):
        list(made)


def test_the_first_error_in_order_is_raised_and_what_lies_before_it_comes(tmp_path: Path) -> None:
    made = make_parts(Maker(tmp_path, {2: "user", 3: "run"}), range(4), 2)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(UserError, match="part 2"):
        next(made)


def test_after_a_failure_no_more_parts_are_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = pool._Worker.ask

    def noted(worker: pool._Worker, part: int) -> None:
        asked.append(part)
        ask(worker, part)

    monkeypatch.setattr(pool._Worker, "ask", noted)
    os.mkfifo(tmp_path / "go")

    def done(part: int) -> None:  # part 0 waits for it, and each worker has two parts
        if part == 3:
            (tmp_path / "go").write_text("")

    made = make_parts(Maker(tmp_path, {0: "waits", 2: "user"}), range(9), 2, done)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(UserError, match="part 2"):
        next(made)
    assert asked == [0, 1, 2, 3]


def test_workers_do_not_see_the_signals_of_a_whole_job(tmp_path: Path) -> None:
    assert list(make_parts(Maker(tmp_path, {0: "told"}), range(2), 1)) == [0, 1]


def test_all_workers_come_up_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    start, send = pool._Worker.start, pool._Worker.send

    def noted_start(worker: pool._Worker) -> None:
        calls.append("start")
        start(worker)

    def noted_send(worker: pool._Worker, maker: Any) -> None:
        calls.append("send")
        send(worker, maker)

    monkeypatch.setattr(pool._Worker, "start", noted_start)
    monkeypatch.setattr(pool._Worker, "send", noted_send)
    assert list(make_parts(Maker(tmp_path, {}), range(4), 2)) == [0, 1, 2, 3]
    assert calls == ["start", "start", "send", "send"]


SCRIPT = """
import multiprocessing, sys
from pathlib import Path
from llmkit.data.building.pool import make_parts
from tests.data.building.makers import Maker

if len(sys.argv) > 2:
    multiprocessing.set_executable(sys.argv[2])
faults = dict.fromkeys(range(100, 50000), "much to hand over")
print(list(make_parts(Maker(Path(sys.argv[1]), faults), range(3), 2)))
"""
"""Without a guard: were it run once more in its workers, those would start others."""


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG)


def test_workers_do_not_run_the_main_script(tmp_path: Path) -> None:
    assert run_script(tmp_path).stdout == "[0, 1, 2]\n"


def test_a_worker_that_cannot_start_is_no_end_of_waiting(tmp_path: Path) -> None:
    done = run_script(tmp_path, "/bin/false")
    assert "a process that tokenizes ended with exit code 1 (it may have said why above)" in done.stderr


def test_nothing_to_make_starts_nobody(tmp_path: Path) -> None:
    assert list(make_parts(Maker(tmp_path, {}), [], 4)) == []
