"""What the kernel tells of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from llmkit import proc
from tests.limits import HANG

SLEEPS = """
import subprocess, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def until(holds: Callable[[], bool]) -> None:
    last = time.monotonic() + HANG
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.01)


@pytest.mark.parametrize(("code", "end"), [("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
                                           ("raise SystemExit(3)", "exit code 3")])  # fmt: skip
def test_how_a_process_ended_is_seen_before_anybody_waits_for_it(code, end):
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
    until(lambda: proc.state(process.pid) == "Z")
    assert proc.end_of(process.pid) == end
    process.wait()
    assert proc.end_of(process.pid) == proc.state(process.pid) == ""


def test_the_state_of_a_process_and_where_it_is():
    process = subprocess.Popen(["sleep", "600"])
    until(lambda: proc.state(process.pid) == "S")
    assert proc.end_of(process.pid) == ""
    process.send_signal(signal.SIGSTOP)
    until(lambda: proc.state(process.pid) == "T")
    assert "state T" in proc.in_kernel(process.pid)
    process.kill()
    process.wait()


def test_processor_time_is_that_of_all_threads_and_of_children():
    own, tree = proc.times(os.getpid()), proc.tree_seconds(os.getpid())
    subprocess.run([sys.executable, "-I", "-S", "-c", "sum(range(10**7))"], check=True)
    sum(range(10**7))
    assert proc.times(os.getpid()).running > own.running
    assert proc.tree_seconds(os.getpid()) > tree + 0.05
    assert proc.times(os.getpid()).waiting >= own.waiting


def test_nothing_is_known_of_a_process_that_is_gone():
    gone = 2**22 + 1
    assert proc.times(gone) == (0.0, 0.0)
    assert (proc.tree_seconds(gone), proc.tracer(gone), proc.tracer(os.getpid())) == (0.0, 0, 0)
    assert proc.in_kernel(gone) == "state gone"


def test_children_with_a_session_of_their_own_are_found_and_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert proc.descendants(parent.pid) == [child]
    assert child in proc.descendants(os.getpid())
    proc.kill_tree(parent.pid)
    assert parent.wait() == -9
    parent.stdout.close()
    until(lambda: proc.state(child) in ("", "Z", "X"))

