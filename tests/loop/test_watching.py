"""The watchdog in the loop: what it is told, and what is made of what it says."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from llmkit.loop.phases import Phases
from llmkit.loop.watching import KEY, WatchHook, meet, take
from llmkit.parallel.mesh import Mesh
from tests.program import recorded, train


class Told:
    """Stands for the watchdog of a rank. calls: what it was told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.waiting: list[dict[str, Any]] = []

    def step_done(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    def saved(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    def news(self) -> list[dict[str, Any]]:
        found, self.waiting = self.waiting, []
        return found


class Recording:
    """Stands for a trainer: notes, and events on record."""

    def __init__(self, phases: Phases) -> None:
        self.notes: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.phases, self.mesh = phases, Mesh()
        self.console = SimpleNamespace(note=lambda text, important=False: self.notes.append(text))
        self.state, self.log = SimpleNamespace(step=20), SimpleNamespace(own_seconds=(4.5, 19))
        self.config = SimpleNamespace(monitor=SimpleNamespace(log_every=10))
        self.saved_step, self.first_step = 10, 8

    def record_event(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))


def test_a_step_lasts_with_its_data_and_what_follows_but_not_with_a_save():
    now = [0.0]
    phases = Phases(lambda: now[0])
    told, t = Told(), Recording(phases)
    hook = WatchHook(told)  # type: ignore[arg-type]
    with phases.span("start"):
        now[0] += 100.0
        hook.on_start(t)  # type: ignore[arg-type]
    for name, seconds in (("data", 1.0), ("step", 2.0), ("save", 50.0), ("evaluate", 60.0), ("data", 4.0)):
        with phases.span(name):  # type: ignore[arg-type]
            now[0] += seconds
        now[0] += 0.5
    with phases.span("step"):
        now[0] += 0.0
    hook.after_step(t, None)  # type: ignore[arg-type]
    assert told.calls == [(10, 8), (20, 1.0 + 2.0 + 4.0 + 5 * 0.5, 4.5, 19)]


def test_every_change_of_phase_is_a_sign_of_life():
    phases, seen = Phases(), []
    phases.beat = seen.append
    with phases.span("start"), phases.span("save"):
        pass
    with phases.span("step"):
        pass
    assert seen == ["start", "save", "start", "start", "step", "other"]


def test_a_straggler_is_an_event_and_a_line_at_the_next_row():
    told, t = Told(), Recording(Phases())
    told.waiting = [{"kind": "straggler", "rank": 3, "host": "n2", "seconds": 1.5, "median": 0.5}]
    hook = WatchHook(told)  # type: ignore[arg-type]
    t.state.step = 19
    hook.after_step(t, None)  # type: ignore[arg-type]
    assert t.events == []
    t.state.step = 20
    hook.after_step(t, None)  # type: ignore[arg-type]
    fields = {"step": 20, "rank": 3, "host": "n2", "seconds": 1.5, "median": 0.5}
    assert t.events == [("straggler", fields)]
    assert t.notes == [
        "rank 3 (n2) is a straggler, for which all wait: "
        "of its own a step takes it 1.5 s, and the others 0.5 s"
    ]


def test_a_watchdog_that_has_ended_is_told():
    t = Recording(Phases())
    take(t, {"kind": "unwatched", "reason": "its watching process has ended"})  # type: ignore[arg-type]
    assert t.notes == ["rank 0 is not watched any more: its watching process has ended"]


def test_ranks_meet_where_rank_0_listens():
    store = dist.HashStore()
    first = meet(Mesh(0, 2, store=store), "n1", one_host=True)
    second = meet(Mesh(1, 2, store=store), "n1", one_host=True)
    assert first is not None and first.server is not None
    assert second == first._replace(server=None)
    assert second.address == "127.0.0.1" and len(second.token) == 32
    with first.server, socket.create_connection((second.address, second.port)):
        pass
    assert meet(Mesh(), "n1", one_host=True) is None


def test_where_rank_0_cannot_listen_no_rank_is_watched(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr("llmkit.loop.watching.address_of_gloo", lambda: "192.0.2.1")  # nobody's
    for rank in range(2):
        with pytest.raises(OSError):
            meet(Mesh(rank, 2, store=store), "n1", one_host=False)
    assert "rank 0 cannot listen" in json.loads(store.get(KEY))["error"]


def test_a_run_that_cannot_be_watched_goes_on_without(project, monkeypatch, capsys):
    def refused(*arguments: Any) -> None:
        raise OSError("no process can be started")

    monkeypatch.setattr("llmkit.loop.watching.Watch.start", refused)
    assert train("faults.watchdog=true", "train.max_steps=2", "run.deterministic=false") == 0
    assert "nothing watches over this process" in capsys.readouterr().out


def test_a_watched_run_ends_as_one_that_is_not(project):
    assert train("faults.watchdog=true", "run.deterministic=false") == 0
    assert recorded("done") and not recorded("hung_rank") and not recorded("dead_rank")


