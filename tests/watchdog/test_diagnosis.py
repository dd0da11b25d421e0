"""Who keeps a run from going on."""

from __future__ import annotations

from llmkit.watchdog.diagnosis import Known, dead, diagnose, hosts_of, verdict_of
from llmkit.watchdog.limits import DISK

LIMIT = 12.0


def known(rank: int, **facts) -> Known:
    return Known(rank, f"n{rank}", 100 + rank, **{"phase": "step", "step": 9, **facts})


def waiting(rank: int, **facts) -> Known:
    """A rank that waits for others in an exchange, for too long."""
    defaults = {"overdue": True, "stuck": True, "age": 13.0, "place": "all_reduce (a.py:1)"}
    return known(rank, **{**defaults, "exchange": "all_reduce", **facts})


def test_the_rank_that_waits_for_nobody_hangs():
    verdict = diagnose([waiting(0), waiting(1, exchange="", place="read (my.py:7)"), waiting(2)], LIMIT)
    assert verdict is not None and verdict_of({**verdict._asdict(), "kind": "verdict"}) == verdict
    assert verdict is not None
    assert (verdict.event, verdict.ranks) == ("hung_rank", (1,))
    assert verdict.text == (
        "rank 1 (n1, process 101) hangs in read (my.py:7), since 13 s in the phase step after step 9; "
        "ranks 0, 2 wait in all_reduce (a.py:1)"
    )


def test_no_rank_is_blamed_while_one_that_the_others_wait_for_is_within_its_limit():
    assert diagnose([waiting(0), known(1, phase="data", age=200.0, exchange="")], LIMIT) is None


def test_a_stopped_rank_is_named_and_a_stopped_job_is_none():
    stopped = known(1, stopped=True, age=13.0)
    verdict = diagnose([waiting(0), stopped], LIMIT)
    assert verdict is not None and verdict.ranks == (1,) and "SIGSTOP" in verdict.text
    assert diagnose([stopped, stopped._replace(rank=0)], LIMIT) is None


def test_a_job_that_goes_on_after_it_was_stopped_is_given_time_to():
    """Of some ranks the newest report may still be from before."""
    assert diagnose([known(0, paused=True), known(1, stopped=True, age=60.0)], LIMIT) is None


def test_a_compiler_and_a_debugger_are_no_hang():
    for excuse in ("a compiler", "a debugger"):
        assert diagnose([waiting(0), waiting(1, exchange="", excused=excuse)], LIMIT) is None


def test_a_host_that_is_not_heard_is_named_with_those_that_wait_for_it():
    verdict = diagnose([waiting(0), known(1, silent=14.0)], LIMIT)
    assert verdict is not None and verdict.ranks == (1,)
    assert "rank 1 (n1, process 101) was not heard for 14 s" in verdict.text
    assert "rank 0 waits" in verdict.text and verdict.gone


def test_a_rank_that_has_ended_while_others_wait_is_named_whatever_they_do():
    verdict = diagnose([waiting(0), known(1, left=True)], LIMIT)
    assert verdict is not None and verdict.ranks == (1,) and "has ended" in verdict.text


def test_mismatched_exchanges_are_told_with_the_place_of_each_rank():
    ranks = [
        waiting(0, place="all_reduce (control.py:70)"),
        waiting(1, place="barrier (my.py:3)", exchange="barrier"),
    ]
    verdict = diagnose(ranks, LIMIT)
    assert verdict is not None
    assert verdict.text == (
        "the ranks wait for each other in different exchanges, since 13 s: "
        "rank 0 waits in all_reduce (control.py:70), rank 1 waits in barrier (my.py:3)"
    )
    assert verdict.ranks == ()
    many = [*ranks, waiting(2, place="all_reduce (control.py:70)")]
    verdict = diagnose(many, LIMIT)
    assert verdict is not None and verdict.ranks == (1,)


def test_of_ranks_that_all_wait_the_one_behind_is_named():
    verdict = diagnose([waiting(0, step=10), waiting(1, step=9), waiting(2, step=10)], LIMIT)
    assert verdict is not None and verdict.ranks == (1,)


def test_a_rank_whose_device_does_not_answer_is_named_where_the_others_wait_for_ranks():
    verdict = diagnose([waiting(0), waiting(1, exchange="device", place="read (scalars.py:3)")], LIMIT)
    assert verdict is not None and verdict.ranks == (1,)


def test_ranks_that_all_wait_are_left_alone_until_all_do_for_too_long():
    assert diagnose([waiting(0), waiting(1, stuck=False, overdue=False)], LIMIT) is None


def test_a_single_rank_hangs_wherever_it_is():
    for exchange in ("", "device"):
        verdict = diagnose([waiting(0, exchange=exchange)], LIMIT)
        assert verdict is not None and verdict.ranks == (0,)


def test_a_rank_whose_stacks_were_not_got_may_be_waiting_too():
    """As on a machine that has too much to do: the one that it waits for is within its limit."""
    ranks = [waiting(0, place="", exchange=None), known(1, phase="data", age=60.0, exchange="")]
    assert diagnose(ranks, LIMIT) is None
    assert diagnose([waiting(0, place="", exchange=None)], LIMIT) is None
    verdict = diagnose([waiting(0, place="", exchange=None, age=DISK + 1.0), ranks[1]], LIMIT)
    assert verdict is not None and verdict.ranks == (0,)


def test_late_data_are_no_reason_to_leave_a_host_out():
    late = [waiting(0), waiting(1, phase="data", exchange="")]
    verdict = diagnose(late, LIMIT)
    assert verdict is not None and verdict.event == "stalled"
    assert hosts_of(verdict, late) == []
    hung = diagnose([waiting(0), waiting(1, exchange="")], LIMIT)
    assert hung is not None and hosts_of(hung, late) == ["n1"]


def test_a_dead_rank_is_named_with_what_ended_it():
    killed = dead(known(2), "SIGKILL")
    assert (killed.event, killed.ranks) == ("dead_rank", (2,))
    assert killed.text.startswith("rank 2 (n2, process 102) was ended by SIGKILL (")
    assert "in step 10" in killed.text
    assert "ended with exit code 3 in the phase save" in dead(known(2, phase="save"), "exit code 3").text
    assert "ended in step 10" in dead(known(2), "").text
