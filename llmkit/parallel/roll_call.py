"""Finds out which process of a run failed first, or ended without reporting an error."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from llmkit.config.mistakes import listed
from llmkit.end_file import own_host
from llmkit.errors import RunFault, from_report, to_report

ANSWER_SECONDS = 5.0
"""How long processes have to answer once one has failed; one that has not answered by then counts as gone."""
POLL_SECONDS = 0.5
CLOSE_SECONDS = 30.0
"""How long `close` waits at most, for a store that does not answer any more."""
MAX_MESSAGE = 2000
"""Characters of an error that are sent to other processes."""
SHOWN = 8
"""Ranks that a message names at most."""
_OF_CONNECTIONS = re.compile("(?i)gloo|nccl|connection|pair closure|broken pipe|socket|timed? ?out")
"""In what gloo says: "[.../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer", and
at each call after that "Application timeout caused pair closure"."""
AGAIN = "Run the same command again: it continues from the newest checkpoint, if there is one"


class Explanation(NamedTuple):
    """What somebody who watches all processes says: these ranks are why the others cannot go on.

    hosts: that may be the cause.
    """

    ranks: Sequence[int]
    text: str
    hosts: Sequence[str] = ()


class RollCall:
    """Runs in every process from the moment it joins the others until `close`.

    A process that fails records its error in the store and ends, which breaks the connections of the others;
    they then read the error there. For a process that is blocked, a thread answers that it still runs.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world = store, rank, world_size
        self.absent: set[int] = set()
        """Ranks that have failed or gone; set by `cause`."""
        self.gone: set[int] = set()
        """Those of them that have reported nothing."""
        self.witness: Callable[[], Explanation | None] = lambda: None
        """May be set to who knows of ranks that have gone; asked by the thread that calls `cause`."""
        self._known: list[BaseException] = []
        self._closed = threading.Event()
        store.set(f"host/{rank}", own_host(os.environ))
        store.set(f"process/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        own: Store = store.clone()  # type: ignore[attr-defined]  # two threads cannot share one
        self._thread = threading.Thread(target=self._answer, args=(own,), name="roll call", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and waits until it has ended.

        A process that ends while the thread is inside the store is aborted: the interpreter then stops the
        thread where C++ allows no exception ("terminate called without an active exception").
        """
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)

    @property
    def first(self) -> int:
        """The first rank that is left; it reports for all."""
        return min(rank for rank in range(self._world) if rank not in self.absent)

    def cause(self, error: BaseException) -> BaseException:
        """Why this process cannot go on: `error`, or what caused it. Recorded for the others.

        A connection may have broken because another process has failed or gone: then the result is a
        RunFault, or that process's UserError, and names the process.
        """
        if not any(error is known for known in self._known):
            self._known = [error, self._cause(error)]
        return self._known[-1]

    def _cause(self, error: BaseException) -> BaseException:
        try:
            report = to_report(error)
            short = {"message": report["message"][:MAX_MESSAGE], "broken": is_broken_connection(error)}
            hosts = {"hosts": hosts_behind(error)}
            self._store.set(f"end/{self._rank}", json.dumps(report | short | hosts))
            self._store.set("ended", "")
            return self._behind() or error if is_broken_connection(error) else error
        except RuntimeError:
            if self._rank == 0 or not is_broken_connection(error):
                return error
            self.absent = self.gone = {0}
            return self._explained() or RunFault(
                f"rank 0, where the processes of this run meet, has failed or ended; see its output. {AGAIN}"
            )

    def _behind(self) -> BaseException | None:
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            ends = {rank: end for rank in range(self._world) if (end := self._read(f"end/{rank}"))}
            failed = [rank for rank, end in ends.items() if not json.loads(end)["broken"]]
            if failed:
                self.absent = set(failed)
                reports = [json.loads(ends[rank]) for rank in failed]
                hosts = dict.fromkeys(host for report in reports for host in report["hosts"])
                return from_report(reports[0], self._named(failed), list(hosts))
            if (explained := self._explained()) is not None:
                return explained
            if len(ends) == self._world:
                return None
            if time.monotonic() > until:
                break
            self._closed.wait(0.1)
        self.absent = self.gone = {
            rank for rank in range(self._world) if rank not in ends and not self._read(f"alive/{rank}")
        }
        if not self.absent:
            return None
        gone = self._named(sorted(self.absent))
        return RunFault(
            f"{gone} ended without reporting an error: killed (out of memory, perhaps), or its host is lost. "
            f"{AGAIN}",
            list(dict.fromkeys(self._read(f"host/{rank}") for rank in sorted(self.gone))),
        )

    def _explained(self) -> RunFault | None:
        told = self.witness()
        if told is None or not told.ranks or self._rank in told.ranks:
            return None
        self.absent = self.gone = set(told.ranks)
        return RunFault(f"{told.text}. {AGAIN}", told.hosts)

    def _named(self, ranks: list[int]) -> str:
        return listed([f"rank {rank} ({self._read(f'process/{rank}')})" for rank in ranks], SHOWN)

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _answer(self, store: Store) -> None:
        try:
            while not self._closed.wait(POLL_SECONDS):
                if store.check(["ended"]):
                    store.set(f"alive/{self._rank}", "yes")
                    return
        except RuntimeError:
            return  # the store is gone: so is the run


def hosts_behind(error: BaseException) -> Sequence[str]:
    """Hosts that may be the cause of an error: this one where its device failed, as a GPU that is lost."""
    if isinstance(error, torch.AcceleratorError):
        return (own_host(os.environ),)
    return error.hosts if isinstance(error, RunFault) else ()


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error may be no more than that another process has gone, or did not answer in time.

    gloo raises plain RuntimeErrors, as other things do that fail in one process: only their text tells.
    """
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _OF_CONNECTIONS.search(str(error)) is not None
