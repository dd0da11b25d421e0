"""A rank that only beats, for tests of its watchdog: it imports no torch, and needs a tenth of a second.

    python -m tests.watchdog.fake_rank '{"run": ..., "act": "sleep"}'
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmkit.errors import EndedError
from llmkit.watchdog.limits import Limits
from llmkit.watchdog.member import STACKS
from llmkit.watchdog.watch import Hub, Watch, Watched
from tests.limits import HANG

PHASES = ("start", "step", "save")
LIMIT = 1.0
"""Seconds of a step that are not overdue."""


def hold_the_gil() -> None:
    reader, _writer = os.pipe()
    while True:  # a signal interrupts each reading
        ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)


def spin() -> None:
    while True:
        pass


WORK = SimpleNamespace(wait=time.sleep)
"""Looks like a handle of an exchange: a call into C, of which only the line tells that it waits."""


def wait() -> None:
    """As for other ranks, until their connections break."""
    WORK.wait(6.0 * LIMIT)


def fork_and_die() -> None:
    """A child lives on with all that it has inherited."""
    if os.fork() == 0:
        time.sleep(20.0)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def until_on_record(run: Path) -> None:
    """However late the watching process comes to it."""
    files = run / "events.jsonl", run / "logs" / "stacks-7" / "rank-00000.txt"
    last = time.monotonic() + HANG
    while not all(file.exists() and file.stat().st_size for file in files):
        assert time.monotonic() < last
        time.sleep(0.05)


ACTS: dict[str, Any] = {
    "sleep": lambda: time.sleep(600.0),
    "until_on_record": until_on_record,
    "pause": lambda: time.sleep(3.0 * LIMIT),
    "gil": hold_the_gil,
    "spin": spin,
    "wait": wait,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fork": fork_and_die,
    "nothing": lambda: None,
}


def main(order: dict[str, Any]) -> int:
    """Some steps, the act, and some steps more."""
    watch = Watch(PHASES, Limits(LIMIT, 300.0, foreign=False))
    place = order.get("hub")
    if place is not None:
        server = socket.socket(fileno=place.pop("server")) if order["rank"] == 0 else None
        place = Hub(**{**place, "server": server})
    watched = Watched(Path(order["run"]), order.get("rank", 0), order.get("world", 1), 7, order["ends"])
    code = 0
    up = watched.run / f"up-{watched.rank}"
    if order.get("late"):
        up.touch()
        last = time.monotonic() + HANG
        while not (watched.run / "events.jsonl").exists():
            assert time.monotonic() < last
            time.sleep(0.01)
    watch.start(watched, place)
    assert watch._process is not None
    print(watch._process.pid, flush=True)
    up.touch()
    while not all(watched.run.joinpath(f"up-{rank}").exists() for rank in range(watched.world)):
        time.sleep(0.01)  # they meet, as ranks do
        watch.alive()
    try:
        for step in range(1, 21):
            watch.beat(order.get("phase", "step"))
            if step == 10:
                act = ACTS[order["act"]]
                act(watched.run) if act is until_on_record else act()
            time.sleep(0.01)
            watch.step_done(step, 0.01, 0.01 * step, step)
        last = time.monotonic() + order.get("beats_on", 0.0)
        while time.monotonic() < last and not watch.verdict:
            time.sleep(0.05)
            watch.alive()
            watch.news()
    except EndedError as error:
        print(error, flush=True)
        code = 1
    print("verdict:", watch.verdict and watch.verdict.text, flush=True)
    watch.close()
    os.kill(os.getpid(), STACKS)  # a request that comes late
    return code


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
