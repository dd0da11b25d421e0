"""Checks that hang, die, or are slow, each in a process as the real ones are."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from llmkit.doctor import supervise
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope
from llmkit.doctor.supervise import run_checks
from tests.limits import HANG

CHECKS = """
import json, os, signal, sys, time

def well(): pass
def hangs(): time.sleep(3600)
def busy():
    while True: pass
def dies(): os.kill(os.getpid(), signal.SIGSEGV)
def leaves(): sys.exit("no such library")

json.load(sys.stdin)
for name in sys.argv[1:]:
    print(json.dumps(["begin", name]), flush=True)
    globals()[name.partition("-")[0]]()
    found = {"name": name, "state": "ok", "value": "", "advice": "", "compared": "", "numbers": {}}
    print(json.dumps(["finding", found]), flush=True)
"""


def started(names: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", CHECKS, *names]


def run(*names: str, limit: float = HANG) -> dict[str, Finding]:
    return {each.name: each for each in run_checks(names, Scope(".", seconds=limit), started)}


def test_checks_that_hang_or_die_are_findings_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "BLOCKED", 2.0 / HANG)
    found = run("well-1", "hangs", "well-2", "dies", "leaves", "well-3")
    assert [(each.name, each.state) for each in found.values()] == [
        ("well-1", "ok"), ("hangs", "fail"), ("well-2", "ok"), ("dies", "fail"), ("leaves", "fail"),
        ("well-3", "ok"),
    ]  # fmt: skip
    assert "without any use of a processor" in found["hangs"].value
    assert "was ended by SIGSEGV" in found["dies"].value
    assert "exit code 1: no such library" in found["leaves"].value


def test_what_there_is_no_time_for_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that has a share of a core, as on a busy machine, is slow, and not hung."""
    monkeypatch.setattr(supervise, "BLOCKED", HANG)
    found = run("busy", "well", limit=0.5)
    assert [(each.name, each.state) for each in found.values()] == [("time", "warn")]
    assert "no time for busy, well" in found["time"].value


def test_a_check_that_spins_on_a_core_of_its_own_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "BLOCKED", 0.1)
    monkeypatch.setattr(supervise, "OWN_CORE", 0.0)  # whatever this machine gives it
    assert run("busy", limit=3.0)["busy"].state == "fail"


LINGERS = CHECKS + """
os.close(1)
end = time.monotonic() + 5.0
while time.monotonic() < end:
    time.sleep(SLEEP)
"""


def test_a_process_that_takes_its_time_to_end_has_found_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervise, "BLOCKED", 3.0 / HANG)
    for seconds, state in (("0", "ok"), ("5", "fail")):
        code = LINGERS.replace("SLEEP", seconds)
        scope = Scope(".", seconds=HANG)
        found = run_checks(["well"], scope, lambda names, code=code: [sys.executable, "-c", code, *names])
        assert [each.state for each in found][-1] == state, found


CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_the_work_of_what_a_check_has_started_counts_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervise, "BLOCKED", 3.0)
    note = tmp_path / "pid"
    spin = f"import os; open({str(note)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    found = run_checks(["waits"], Scope(".", seconds=7.0), lambda names: [sys.executable, "-c", CHILD, spin])
    assert [(each.name, each.state) for each in found] == [("time", "warn")]
    end = time.monotonic() + HANG
    while psutil.pid_exists(pid := int(note.read_text())):
        assert time.monotonic() < end
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)


def test_the_process_gets_the_scope_and_its_prints_stay_out_of_the_findings(tmp_path: Path) -> None:
    """The real process, with the lightest check."""
    found = run_checks(["disk"], Scope(str(tmp_path), seconds=HANG))
    assert {each.name for each in found} == {"free", "free, temporary", "clock", "file locks", "disk speed"}
    assert os.listdir(tmp_path) == []
