"""What this process makes of signals."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from llmkit import stopping
from llmkit.stopping import (
    LAUNCHER_GONE,
    LAUNCHERS,
    SIGNALS,
    Listener,
    Stopped,
    in_thread,
    interruptible,
    restarts_failed,
)
from tests.limits import HANG
from tests.program import make_project, run


@pytest.fixture
def listener():
    """One that listens; everything is as before afterwards."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with Listener({}) as listener:
        listener.listen()
        yield listener
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_interrupts_nothing(listener, number):
    assert listener.reason == ""
    with interruptible():
        os.kill(os.getpid(), number)
    assert listener.reason == number.name


def test_the_first_signal_counts(listener):
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert listener.reason == "SIGHUP"


def test_a_third_ctrl_c_ends_the_process_at_once(listener):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_may_be_given_up_is_interrupted_once(listener):
    done = []
    listener.give_up(everywhere=False)
    with pytest.raises(Stopped, match="SIGUSR2"):
        with interruptible():
            done.append("at first")
        done.append("between")
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGUSR2)
                done.append("never")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("cleared away")
    assert done == ["at first", "between", "cleared away"]


def test_what_comes_between_is_noticed_as_the_next_work_begins(listener):
    listener.give_up(everywhere=False)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"), interruptible():
        raise AssertionError("it must not begin")


def test_a_process_that_nobody_waits_for_may_be_interrupted_everywhere(listener):
    listener.give_up(everywhere=True)
    with pytest.raises(Stopped, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_is_not_taken_for_an_error(listener):
    listener.give_up(everywhere=True)
    with pytest.raises(Stopped):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            raise AssertionError("a handler of errors took it") from None


def test_nohup_keeps_its_meaning():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Listener({}) as listener:
            listener.listen()
            os.kill(os.getpid(), signal.SIGHUP)
            assert listener.reason == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_the_launcher_is_a_request(monkeypatch):
    with Listener({LAUNCHERS[0]: "none"}) as launched, Listener({}) as alone:
        assert launched.reason == ""
        monkeypatch.setattr(os, "getppid", lambda: -1)
        assert launched.reason == LAUNCHER_GONE
        assert alone.reason == ""  # a shell that has ended says nothing


def test_work_in_a_thread_gives_what_it_gives():
    def fail() -> int:
        raise KeyError("missing")

    assert in_thread(lambda: 5) == 5
    with pytest.raises(KeyError, match="missing"):
        in_thread(fail)


def test_who_waits_for_a_thread_can_be_interrupted(listener):
    released = threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait(HANG)

    listener.give_up(everywhere=True)
    with pytest.raises(Stopped, match="SIGTERM"):
        in_thread(work)
    released.set()


def test_other_reasons_are_looked_for_as_long_as_work_may_be_given_up(listener, monkeypatch):
    monkeypatch.setattr(stopping, "WATCH_SECONDS", 0.01)
    reasons = iter(["", "", "a file"])
    listener.give_up(everywhere=True, other=lambda: next(reasons))
    with pytest.raises(Stopped, match="a file"):
        time.sleep(HANG)
    asked = []
    listener.hold()
    listener.give_up(everywhere=False, other=lambda: asked.append(1) or "")
    listener.hold()
    before = len(asked)
    time.sleep(0.1)
    assert len(asked) - before <= 1, "but for one that was under way"


def test_a_command_that_has_its_exit_code_ends_with_it_whatever_signal_comes(tmp_path):
    """Taking a process down may last for seconds; a run that is done or saved has not failed meanwhile."""
    for number in set(SIGNALS) - {signal.SIGINT}:
        (tmp_path / f"ender_{number.name}.py").write_text(
            f"import atexit, os\natexit.register(os.kill, os.getpid(), {int(number)})\n"
        )
    make_project(tmp_path)
    plugins = ", ".join(sorted(path.stem for path in tmp_path.glob("ender_*.py")))
    run(tmp_path, "config", "tiny.yaml", f"plugins=[{plugins}]")


def test_a_launcher_that_starts_failed_processes_again_is_known():
    assert restarts_failed({"TORCHELASTIC_MAX_RESTARTS": "3"})
    assert not any(map(restarts_failed, ({}, {"TORCHELASTIC_MAX_RESTARTS": "0"})))
