"""A process of the fork server is, for a test, one that was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fork_server
from tests.fork_server import ROOT, Process
from tests.limits import HANG

PROGRAM = """\
import atexit, json, os, signal, sys, threading
import numpy, torch

atexit.register(lambda: print("at exit"))
facts = {
    "name": __name__, "main": sys.modules["__main__"].__file__, "arguments": sys.argv, "folder": os.getcwd(),
    "path": sys.path[0], "variables": dict(os.environ), "threads": torch.get_num_threads(),
    "input": sys.stdin.read(), "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "opened": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    "parent_is_tester": os.getppid() == int(os.environ["TESTER"]), "group": os.getpgrp(),
}
if "mkl" in sys.argv:
    os.environ["MKL_CBWR"], os.environ["MKL_VERBOSE"] = "COMPATIBLE", "1"
    torch.randn(300, 300) @ torch.randn(300, 300)
print(json.dumps(facts))
print("an error", file=sys.stderr)
if "wait" in sys.argv:
    sys.stdout.flush()
    signal.pause()
if "raise" in sys.argv:
    raise ZeroDivisionError("of the program")
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def start(folder: Path, *arguments: str, **variables: str) -> Process:
    environment = {"TESTER": str(os.getpid()), "PATH": os.environ["PATH"], **variables}
    return fork_server.start("program", arguments, cwd=folder, environment=environment)


def facts(process: Process) -> dict:
    return json.loads(next(line for line in process.output().splitlines() if line.startswith("{")))


def wait_until(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)


def test_a_program_finds_what_it_was_given_and_ends_with_its_code(folder):
    process = start(folder, "two words", OMP_NUM_THREADS="1")
    assert process.wait(HANG) == 3 and process.poll() == 3
    found = facts(process)
    assert found["name"] == "__main__" and found["main"] == str(folder / "program.py")
    assert found["arguments"] == [str(folder / "program.py"), "two words"]
    assert found["folder"] == found["path"] == str(folder)
    assert set(found["variables"]) - {"LC_CTYPE"} == {"TESTER", "PATH", "OMP_NUM_THREADS"}
    # Whoever starts the tests in the background of a shell ignores SIGINT, and so do all processes below.
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert (found["threads"], found["input"], found["interrupt"]) == (1, "", heeded)
    assert found["opened"] == [0, 1, 2]
    assert not found["parent_is_tester"] and found["group"] == os.getpgrp()
    assert {"an error", "at exit"} <= set(process.output().splitlines())


def test_a_traceback_is_shown(folder):
    process = start(folder, "raise")
    assert process.wait(HANG) == 1
    assert "ZeroDivisionError: of the program" in process.output()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_dies_of_a_signal(folder, number):
    process, other = start(folder, "wait"), start(folder, "wait")
    wait_until(lambda: all("{" in each.output() for each in (process, other)))
    os.kill(process.pid, number)
    assert process.wait(HANG) == -number
    assert "at exit" not in process.output()
    assert other.poll() is None
    with pytest.raises(TimeoutError, match=r"(?s)no end after 0\.1 s: .*an error"):
        other.wait(0.1)
    assert other.poll() == -signal.SIGKILL


def test_mkl_reads_what_a_program_sets_before_its_first_use(folder):
    process = start(folder, "mkl", OMP_NUM_THREADS="1")
    assert process.wait(HANG) == 3
    lines = [line for line in process.output().splitlines() if "SGEMM" in line]
    if not lines:
        pytest.skip("this torch has no MKL")
    assert all("CNR:COMPATIBLE" in line for line in lines)


@pytest.mark.exhaustive
def test_the_server_and_its_children_end_with_the_process_that_started_it(folder):
    """Also where that one is killed and can close nothing."""
    code = f"""\
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests import fork_server
process = fork_server.start("program", ["wait"], cwd={str(folder)!r}, environment=dict(os.environ))
while "{{" not in process.output(): time.sleep(0.01)
(server,) = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
print(server, process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    (folder / "starter.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "starter.py"], cwd=folder, env={**os.environ, "TESTER": "0"}, stdout=subprocess.PIPE
    )
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not any(runs(int(pid)) for pid in done.stdout.split()))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
