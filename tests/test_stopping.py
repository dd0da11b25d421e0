"""What this process makes of signals."""

from __future__ import annotations

import os
import signal

import pytest

from llmkit.stopping import LAUNCHER_GONE, SIGNALS, Listener, Stopped, interruptible


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
    with pytest.raises(Stopped, match="SIGUSR2"), listener.giving_up(everywhere=False):
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
    with listener.giving_up(everywhere=False):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"), interruptible():
            raise AssertionError("it must not begin")


def test_a_process_that_nobody_waits_for_may_be_interrupted_everywhere(listener):
    with pytest.raises(Stopped, match="SIGTERM"), listener.giving_up(everywhere=True):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_is_not_taken_for_an_error(listener):
    with pytest.raises(Stopped), listener.giving_up(everywhere=True):
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
    with Listener({"TORCHELASTIC_RUN_ID": "none"}) as launched, Listener({}) as alone:
        assert launched.reason == ""
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert launched.reason == LAUNCHER_GONE
        assert alone.reason == ""  # a shell that has ended says nothing
