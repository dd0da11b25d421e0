"""Which of the time without a sign of life counts."""

from __future__ import annotations

import pytest

from llmkit import proc
from llmkit.watchdog.board import Board, Sight
from llmkit.watchdog.limits import DISK
from llmkit.watchdog.member import SLOW, Member

TICK = 0.5


class Machine:
    """What the kernel would tell of a process: how much of the time it runs, and waits for a processor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.running, self.waiting, self.now = "S", 0.0, 0.0, 0.0
        monkeypatch.setattr(proc, "state", lambda pid: self.state)
        monkeypatch.setattr(proc, "times", lambda pid: proc.Times(*self._spent()))
        monkeypatch.setattr(proc, "tree_seconds", lambda pid: self._spent()[0])
        self.board = Board.create()
        self.member = Member(1, 1, self.board, -1, ("start", "step"))
        self._beats = 0
        self._done = 0.0, 0.0

    def _spent(self) -> tuple[float, float]:
        return self._done

    def beat(self, patient: int = 0) -> None:
        self._beats += 1
        self.board.write(Sight(self._beats, 3, 12.0, 12.0, patient=patient))

    def pass_by(self, seconds: float) -> None:
        for _ in range(int(seconds / TICK)):
            running, waiting = self._done
            self._done = running + self.running * TICK, waiting + self.waiting * TICK
            self.member.look(TICK)


@pytest.fixture
def machine(monkeypatch):
    found = Machine(monkeypatch)
    found.beat()
    found.pass_by(TICK)
    yield found
    found.board.close()


def test_a_process_that_does_nothing_gets_older_by_all_of_the_time(machine):
    machine.pass_by(20.0)
    assert machine.member.age == 20.0
    assert machine.member.report()["overdue"] and machine.member.report()["stuck"]
    machine.beat()
    machine.pass_by(TICK)
    assert machine.member.age == 0.0 and not machine.member.report()["overdue"]


def test_one_that_spins_does_so_too(machine):
    machine.running = 1.0
    machine.pass_by(20.0)
    assert machine.member.age == 20.0


def test_one_that_gets_a_tenth_of_a_processor_gets_older_by_a_tenth(machine):
    machine.running, machine.waiting = 0.1, 0.9
    machine.pass_by(102.0)
    assert machine.member.age == pytest.approx(SLOW + TICK + 0.1 * (102.0 - SLOW - TICK), abs=0.2)


def test_in_a_patient_phase_only_time_without_work_counts(machine):
    machine.beat(patient=1)
    machine.running = 0.5
    machine.pass_by(100.0)
    assert machine.member.age == 0.0
    machine.running = 0.0
    machine.pass_by(100.0)
    assert machine.member.age == 100.0


def test_time_in_which_it_is_stopped_counts_apart(machine):
    machine.state = "T"
    machine.pass_by(13.0)
    report = machine.member.report()
    assert machine.member.stopped == 13.0 and machine.member.age == 0.0
    assert report["stopped"] and not report["overdue"] and report["age"] == 13.0
    machine.state = "S"
    machine.pass_by(TICK)
    assert not machine.member.report()["stopped"] and machine.member.report()["paused"]
    machine.pass_by(13.0)
    assert not machine.member.report()["paused"]


def test_time_under_a_debugger_does_not_count(machine):
    machine.state = "t"
    machine.pass_by(100.0)
    assert machine.member.age == machine.member.stopped == 0.0


def test_a_disk_may_stall_for_longer_than_a_step(machine):
    machine.state = "D"
    machine.pass_by(100.0)
    assert machine.member.age == 100.0 and not machine.member.report()["overdue"]
    machine.pass_by(DISK)
    assert machine.member.report()["overdue"]
