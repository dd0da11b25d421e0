"""All ranks in one view, by their messages."""

from __future__ import annotations

from typing import Any

from llmkit.watchdog.diagnosis import Known
from llmkit.watchdog.hub import INQUIRY, LONGEST_PAUSE, MOST, Hub
from llmkit.watchdog.limits import DISK


class Ranks:
    """A hub with ranks that answer as they are told. asked: how often it asked them for their stacks."""

    def __init__(self, count: int) -> None:
        self.hub, self.asked = Hub(self._ask, count), 0
        for rank in range(count):
            self.hub.add(Known(rank, f"n{rank}", 100 + rank))
        self.evidence: dict[int, dict[str, Any]] = {}

    def _ask(self) -> None:
        self.asked += 1
        for rank, fields in self.evidence.items():
            self.hub.take(rank, {"kind": "evidence", "excused": "", **fields})

    def report(self, rank: int, **fields: Any) -> None:
        known = {"phase": "step", "step": 9, "age": 0.1, "overdue": False, "stuck": False, "stopped": False}
        assert self.hub.take(rank, {"kind": "report", **known, **fields}) is None


LATE = {"overdue": True, "stuck": True, "age": 13.0}
WAITS = {"place": "wait (a.py:1)", "exchange": "wait"}
HANGS = {"place": "read (my.py:1)", "exchange": ""}


def test_while_nobody_is_overdue_nobody_is_asked():
    ranks = Ranks(2)
    for _ in range(10):
        ranks.report(0)
        ranks.report(1, phase="data", age=200.0)
        assert ranks.hub.tick(0.5) is None
    assert ranks.asked == 0


def test_a_rank_that_hangs_is_found_at_the_first_look_after_all_have_answered():
    ranks = Ranks(2)
    ranks.evidence = {0: WAITS, 1: HANGS}
    ranks.report(0, **LATE)
    ranks.report(1, **LATE)
    assert ranks.hub.tick(0.5) is None
    verdict = ranks.hub.tick(0.5)
    assert verdict is not None and verdict.ranks == (1,)
    assert ranks.asked == 1


def test_a_rank_that_does_not_answer_is_waited_for_a_limited_time():
    ranks = Ranks(3)
    ranks.evidence = {0: WAITS, 1: WAITS}
    for age, named in ((LATE["age"], []), (DISK + 1.0, [(2,)])):
        found = []
        for _ in range(int((LONGEST_PAUSE + INQUIRY) / 0.5) + 2):
            for rank in range(3):
                ranks.report(rank, **{**LATE, "age": age})
            found.append(ranks.hub.tick(0.5))
        verdicts = [each.ranks for each in found if each is not None]
        assert verdicts[:1] == named


def test_where_looks_find_nothing_they_become_rare():
    ranks = Ranks(2)
    ranks.evidence = {0: WAITS, 1: HANGS}
    for _ in range(1200):  # ten minutes
        ranks.report(0, **LATE)
        ranks.report(1, phase="data")
        assert ranks.hub.tick(0.5) is None
    assert 600 / LONGEST_PAUSE <= ranks.asked < 20


def test_a_rank_that_woke_up_when_it_was_asked_is_let_go_on():
    ranks = Ranks(2)
    ranks.evidence = {0: WAITS, 1: HANGS}
    ranks.report(0, **LATE)
    ranks.report(1, **LATE)
    ranks.hub.tick(0.5)
    ranks.report(1)
    assert ranks.hub.tick(0.5) is None


def test_a_death_is_a_verdict_at_once_and_the_only_one():
    ranks = Ranks(2)
    ranks.report(1)
    verdict = ranks.hub.take(1, {"kind": "dead", "cause": "SIGKILL"})
    assert verdict is not None and verdict.event == "dead_rank" and "SIGKILL" in verdict.text
    ranks.hub.closed = True
    assert not ranks.hub.awaited
    assert ranks.hub.take(0, {"kind": "dead", "cause": "SIGKILL"}) is None
    assert ranks.hub.all_gone


def test_ranks_that_leave_in_order_are_no_verdict():
    ranks = Ranks(2)
    for rank in range(2):
        assert not ranks.hub.all_gone
        assert ranks.hub.take(rank, {"kind": "left"}) is None
        ranks.hub.lose(rank)
    assert ranks.hub.all_gone and ranks.hub.tick(0.5) is None


def test_a_rank_whose_watching_process_has_gone_is_named_when_the_others_wait():
    ranks = Ranks(2)
    ranks.evidence = {0: WAITS}
    ranks.hub.lose(1)
    ranks.report(0)
    assert ranks.hub.tick(0.5) is None
    ranks.report(0, **LATE)
    ranks.hub.tick(0.5)
    verdict = ranks.hub.tick(0.5)
    assert verdict is not None and verdict.ranks == (1,)


def test_a_rank_that_has_not_joined_yet_is_waited_for_like_one_that_is_silent():
    hub = Hub(lambda: None, 2)
    hub.add(Known(0, "n0", 100))
    assert hub.awaited
    found = []
    for _ in range(40):
        hub.take(0, {"kind": "report", "phase": "step", **LATE})
        hub.take(0, {"kind": "evidence", "excused": "", **WAITS})
        found.append(hub.tick(0.5))
    first = next(index for index, verdict in enumerate(found) if verdict is not None)
    assert 0.5 * first >= 11.0 and found[first].ranks == (1,)
    assert not hub.all_gone
    hub.take(0, {"kind": "left"})
    assert hub.all_gone


def test_silence_is_counted_from_the_last_message():
    ranks = Ranks(2)
    for _ in range(30):
        ranks.report(0, **LATE)
        verdict = ranks.hub.tick(0.5) or ranks.hub.tick(0.0)
    assert verdict is None or verdict.ranks == (1,)
    assert ranks.hub.ranks[1].silent == 15.0 and ranks.hub.ranks[0].silent == 0.5


def test_messages_that_are_no_messages_change_nothing():
    ranks = Ranks(2)
    ranks.report(1, step=5)
    before = ranks.hub.ranks[1]
    odd = {"kind": "report", "step": "6", "age": None, "phase": 7, "overdue": 1, "unknown": 3}
    assert ranks.hub.take(1, odd) is None
    assert ranks.hub.ranks[1] == before
    ranks.hub.take(1, {"kind": "evidence", "place": "x\x1b[2J" + "y" * 9000})
    assert ranks.hub.ranks[1].place == ("x?[2J" + "y" * 9000)[:MOST]
    ranks.hub.take(1, {"kind": []})
