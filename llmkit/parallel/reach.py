"""Which hosts of a launch cannot connect to which: asked where processes that have met fail to connect.

They meet in a store that one host keeps; messages then go between any two of them, by an interface that each
host has chosen. A firewall, a missing route or a wrong interface shows only there, as a wait without an end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from torch._C._distributed_c10d import Store

from llmkit.config.mistakes import listed
from llmkit.parallel.rank_info import RankInfo

SECONDS = 3.0
"""For one connection."""
PATIENCE = 10.0
"""How long a process waits for what the others have found."""
AT_ONCE = 32
SHOWN = 8
"""Pairs of hosts, and ranks, that a message names at most."""
REMEDY = (
    "open the ports between them in the firewall, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the "
    "interface of the network that all hosts share"
)


class Reach:
    """Lets the other hosts try to connect to this one, until `close`; the system answers, without a thread.

    address: of this host, by which messages go; "" where that is not known.
    """

    def __init__(self, store: Store, info: RankInfo, address: str) -> None:
        self._store, self._info, self._lock = store, info, threading.Lock()
        self._listener: socket.socket | None = None
        if info.local_rank == 0 and info.local_size < info.world_size:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._listener = socket.create_server(("", 0), family=family, backlog=1024)
            door = {"host": socket.gethostname(), "address": address, "port": self._listener.getsockname()[1]}
            store.set(f"door/{info.rank}", json.dumps(door))

    def close(self) -> None:
        """Ends it."""
        if self._listener is not None:
            self._listener.close()

    def unreachable(self, patience: float = PATIENCE) -> str:
        """The pairs of hosts that cannot connect, as a part of a sentence; "" where there are none.

        To be called on all ranks, in no order. patience: seconds that it waits for the others, at most.
        """
        try:
            return self._unreachable(patience)
        except RuntimeError:  # the store is gone
            return ""

    def _unreachable(self, patience: float) -> str:
        doors = {}
        for rank in range(self._info.world_size):
            if self._store.check([f"door/{rank}"]):
                doors[rank] = json.loads(self._store.get(f"door/{rank}"))
        if self._info.rank in doors:
            me = doors.pop(self._info.rank)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                failed = list(pool.map(self._fails, doors, doors.values()))
            lost = [door["host"] for door, fails in zip(doors.values(), failed, strict=True) if fails]
            pairs = [f"{me['host']} cannot connect to {host}" for host in lost]
            self._store.set(f"tried/{self._info.rank}", json.dumps(pairs))
            doors[self._info.rank] = me
        until = time.monotonic() + patience
        tried = self._wait_for("tried", doors, until)
        pairs = [pair for rank in tried for pair in json.loads(self._store.get(f"tried/{rank}"))]
        self._store.set(f"read/{self._info.rank}", "")
        if doors and self._info.rank == 0:  # whose process may keep the store, which ends with it
            self._wait_for("read", range(self._info.world_size), until)
        return f"{listed(pairs, SHOWN)}: {REMEDY}" if pairs else ""

    def _wait_for(self, key: str, ranks: Iterable[int], until: float) -> list[int]:
        """Which of the ranks have set `key`, in their order, as soon as all have, or at `until`."""
        missing, there = set(ranks), list[int]()
        while missing and time.monotonic() < until:
            there += [rank for rank in missing if self._store.check([f"{key}/{rank}"])]
            missing.difference_update(there)
            time.sleep(0.05)
        return sorted(there)

    def _fails(self, rank: int, door: Mapping[str, object]) -> bool:
        """Whether the door of a rank cannot be reached. One that has given up, and closed it, is no proof."""
        try:
            socket.create_connection((str(door["address"]), int(str(door["port"]))), timeout=SECONDS).close()
        except ConnectionRefusedError:
            with self._lock:
                return not self._store.check([f"tried/{rank}"])
        except OSError:
            return True
        return False


class Deadline:
    """Ends this process where a block takes too long that nothing can interrupt, as NCCL when it connects.

    what: is connected, for the message. Rank 0 says which ranks are late, and which hosts cannot connect.
    """

    def __init__(
        self, store: Store, info: RankInfo, reach: Reach, what: str, seconds: float,
        end: Callable[[int], None] = os._exit,
    ) -> None:  # fmt: skip
        self._store: Store = store.clone()  # type: ignore[attr-defined]  # two threads cannot share one
        self._info, self._reach, self._what, self._seconds, self._end = info, reach, what, seconds, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self._store.set(f"{self._what}/{self._info.rank}", "")

    def _watch(self) -> None:
        if self._over.wait(self._seconds):
            return
        size = self._info.world_size
        late = [rank for rank in range(size) if not self._store.check([f"{self._what}/{rank}"])]
        pairs = self._reach.unreachable()
        if self._info.rank == 0:
            names = f"none of {size} ranks" if len(late) == size else f"not {_named(late)} of {size}"
            advice = pairs or "NCCL_DEBUG=INFO shows what it waits for; `srun llmkit doctor` tries all pairs"
            print(
                f"llmkit: {self._what} has connected {names} within {self._seconds:g} s; {advice}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        self._end(1)


def _named(ranks: list[int]) -> str:
    return listed([f"rank {rank}" for rank in ranks], SHOWN)
