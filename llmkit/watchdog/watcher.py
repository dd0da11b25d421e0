"""The watching process of a rank: looks at it twice a second, and talks with those of the other ranks."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit import proc
from llmkit.watchdog.board import Board
from llmkit.watchdog.diagnosis import Known, Verdict, diagnose, hosts_of, verdict_of
from llmkit.watchdog.hub import Hub, known_of
from llmkit.watchdog.limits import STOPPED
from llmkit.watchdog.lines import Lines, Message
from llmkit.watchdog.member import Member
from llmkit.watchdog.peers import Peers
from llmkit.watchdog.record import end, in_time, record, save_stack, say, stacks_folder
from llmkit.watchdog.stragglers import Stragglers

TICK = 0.5
"""Seconds between two looks."""
CONNECT_SECONDS = 10.0
LINGER_SECONDS = 60.0
"""How long the hub outlives its own rank, for the sake of the others."""
FAREWELL_SECONDS = 2.0
ASKED_SECONDS = 5.0
"""How long a rank that hangs has to end by itself once it was asked to."""
OTHERS_SECONDS = 30.0
"""How long the others have to notice that it has gone, and to end in order."""


class Watcher:
    """Watches one rank, by the orders of `Watch.start`; that of rank 0 is the hub of all of them."""

    def __init__(self, rank_end: socket.socket, orders: dict[str, Any]) -> None:
        self._orders, self._rank = orders, int(orders["rank"])
        self._own = Known(self._rank, str(orders["host"]), int(orders["pid"]))
        self._selector = selectors.DefaultSelector()
        self._line = Lines(rank_end)
        self._member = Member(
            self._own.pid, orders["thread"], Board(orders["board"]), orders["dump"], orders["phases"]
        )
        self._left = self._dead = False
        self._since_end = 0.0
        self._last_text = ""
        self._hub: Hub | None = None
        self._verdict: Message | None = None
        self._up: Lines | None = None
        self._silent = 0.0
        self._over = False
        if self._rank == 0:
            server = None if orders["listen"] is None else socket.socket(fileno=orders["listen"])
            self._peers = Peers(server, orders["token"], orders["world"], self._selector)
            self._hub, self._stragglers = Hub(self._ask, orders["world"]), Stragglers(orders["report_steps"])
            self._hub.add(self._own)
        else:
            self._connect()
        self._selector.register(rank_end, selectors.EVENT_READ)

    def _connect(self) -> None:
        address = self._orders["hub"], self._orders["port"]
        try:
            connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
        except OSError as error:
            self._line.send(kind="unwatched", reason=f"no connection to {address[0]}: {error}")
            self._over = True
            return
        self._up = Lines(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        self._up.send(
            kind="hello", token=self._orders["token"], rank=self._rank, host=self._own.host, pid=self._own.pid
        )

    def run(self) -> None:
        """Until the rank has ended, and, of the hub, all of them."""
        last = time.monotonic()
        while not self._finished():
            events = self._selector.select(max(0.0, last + TICK - time.monotonic()))
            self._hear_rank()
            if self._hub is None:
                self._hear_hub()
            else:
                self._hear_peers(self._hub, [key.fd for key, _ in events])
            if (elapsed := time.monotonic() - last) >= TICK:
                last += elapsed
                # What was longer was no time for anybody: this machine slept, or all of it was stopped.
                self._tick(min(elapsed, 2.0 * TICK))
        if self._hub is not None:
            self._peers.send(kind="over")

    def _finished(self) -> bool:
        if not (self._left or self._dead):
            return False
        if self._hub is not None:
            # Where the rank has died, those that have not joined yet are still to be told.
            gone = self._hub.all_gone and not (self._dead and self._hub.awaited)
            return gone or self._since_end > LINGER_SECONDS
        if self._up is not None and self._up.flush():
            with suppress(OSError):  # the hub closes it then: closed by us, unread messages could undo ours
                self._up.socket.shutdown(socket.SHUT_WR)
        return self._up is None or self._since_end > FAREWELL_SECONDS

    def _tick(self, elapsed: float) -> None:
        if self._left or self._dead:
            self._since_end += elapsed
        elif os.getppid() != self._own.pid:
            self._died()
        else:
            self._member.look(elapsed)
            self._tell(kind="report", **self._member.report())
        if self._hub is not None:
            self._peers.send(kind="here")
            if not self._orders["ends"] and self._member.age < 2.0 * TICK:
                self._hub.closed = False  # it goes on after all
            self._decide(self._hub.tick(elapsed))
            for slow in self._stragglers.look(time.monotonic(), self._hub.counted):
                self._line.send(kind="straggler", host=self._hub.ranks[slow.rank].host, **slow._asdict())
        elif not self._over:
            self._silent += elapsed
            self._judge_alone()

    def _hear_rank(self) -> None:
        if self._left or self._dead:
            return
        self._left = any(message.get("kind") == "left" for message in self._line.receive())
        if self._left:
            self._tell(kind="left")
        if self._left or self._line.closed:
            self._selector.unregister(self._line.socket)
        if self._line.closed and not self._left:
            self._died()

    def _died(self) -> None:
        """The rank's process has ended, or is about to: its end of the connection is closed."""
        until = time.monotonic() + 1.0
        while not (cause := proc.end_of(self._own.pid)) and time.monotonic() < until:
            if not proc.state(self._own.pid):
                break
            time.sleep(0.005)
        self._dead = True
        self._member.look(0.0)
        self._tell(kind="report", **self._member.report())
        self._tell(kind="dead", cause=cause)

    def _hear_peers(self, hub: Hub, ready: list[int]) -> None:
        for rank, message in self._peers.hear(ready):
            if message is None:
                hub.lose(rank)
            elif message.get("kind") == "hello":
                hub.add(Known(rank, str(message.get("host"))[:255], message["pid"]))
                if hub.closed and self._verdict is not None:
                    self._peers.tell(rank, self._verdict)
            else:
                self._decide(hub.take(rank, message))

    def _hear_hub(self) -> None:
        if self._up is None:
            return
        for message in self._up.receive():
            self._silent = 0.0
            match message.get("kind"):
                case "stacks":
                    self._testify()
                case "verdict":
                    verdict = verdict_of(message)
                    self._follow(verdict, message["hosts"])
                case "over":
                    self._over = True
        if self._up.closed:
            self._selector.unregister(self._up.socket)
            self._up.close()
            self._up, self._silent = None, 2.0 * STOPPED

    def _tell(self, **message: Any) -> None:
        """A message to the hub, which may be here."""
        if self._hub is not None:
            self._decide(self._hub.take(self._rank, message))
        elif self._up is not None:
            self._up.send(**message)

    def _ask(self) -> None:
        self._peers.send(kind="stacks")
        self._testify()

    def _testify(self) -> None:
        if not (self._left or self._dead):
            found = self._member.evidence()
            self._last_text = found.text
            self._member.look(0.0)  # the signal for its stacks may have woken it
            self._tell(kind="report", **self._member.report())
            self._tell(kind="evidence", place=found.place, exchange=found.exchange, excused=found.excused)

    def _judge_alone(self) -> None:
        """Where the hub is not heard any more, a rank that does not go on is ended by its own watcher."""
        own = known_of(self._own, self._member.report())
        if self._silent < STOPPED or not (own.overdue or own.stopped) or self._left or self._dead:
            return
        hub = Known(0, self._orders["hub_host"], silent=self._silent)
        if (verdict := diagnose([hub, own], STOPPED)) is not None:
            self._over = True
            self._testify()
            self._follow(verdict, self._publish(verdict, [hub, own]))

    def _decide(self, outcome: Verdict | None) -> None:
        if outcome is None or self._hub is None or self._hub.closed:
            return
        self._hub.closed = True
        hosts = self._publish(outcome, list(self._hub.ranks.values()))
        self._verdict = {"kind": "verdict", **outcome._asdict(), "hosts": hosts}
        self._peers.send(**self._verdict)
        self._follow(outcome, hosts)

    def _publish(self, verdict: Verdict, ranks: Sequence[Known]) -> list[str]:
        """Puts a verdict on record; returns the hosts that may be the cause."""
        run, end_file = Path(self._orders["run"]), self._orders["end_file"]
        folder = None if verdict.event == "dead_rank" else self._stacks
        self._member.look(0.0)
        hosts, sight = hosts_of(verdict, ranks), self._member.sight
        in_time(lambda: record(run, self._orders["generation"], verdict, ranks, folder))
        if self._orders["ends"] and end_file is not None:
            in_time(lambda: end(end_file, verdict, sight, hosts))
        say(verdict.text + ("" if folder is None else f"; the stacks of all ranks are in {folder}"))
        return hosts

    @property
    def _stacks(self) -> Path:
        return stacks_folder(Path(self._orders["run"]), self._orders["generation"])

    def _follow(self, verdict: Verdict, hosts: list[str]) -> None:
        """Saves the stacks, tells the rank, and ends it."""
        if self._left or self._dead:
            return
        if verdict.event != "dead_rank" and self._last_text:
            in_time(lambda: save_stack(self._stacks, self._rank, self._last_text))
        self._line.send(kind="verdict", **verdict._asdict(), hosts=hosts)
        if not self._orders["ends"]:
            return
        guilty = verdict.gone or not verdict.ranks or self._rank in verdict.ranks
        dump = self._member.end(guilty, ASKED_SECONDS if guilty else OTHERS_SECONDS, self._gone)
        if dump:
            in_time(lambda: save_stack(self._stacks, self._rank, f"{dump}\n{self._last_text}"))
        self._dead = not self._left
        self._selector.unregister(self._line.socket)
        self._tell(kind="left" if self._left else "lost")

    def _gone(self) -> bool:
        """Whether the rank has ended, or says that it does."""
        self._left = self._left or any(each.get("kind") == "left" for each in self._line.receive())
        return self._left or proc.state(self._own.pid) in ("", "Z", "X")
