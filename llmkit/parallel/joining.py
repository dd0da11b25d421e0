"""How the ranks of one start find each other in a store that may hold what an earlier start has left."""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store

from llmkit.config.mistakes import listed

SHOWN = 8
"""Ranks that a message names at most."""
POLL_SECONDS = 0.02


def join_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of `store` that only the ranks of this start use. Collective.

    A launcher that restarts its ranks in place (torchrun --max-restarts) keeps its store, and with it all
    that the ranks before have written: addresses of processes that are gone, reports of their faults. So
    rank 0 numbers the start, every other rank registers under this number with a random name, and goes on
    once rank 0 has confirmed the name. A rank that comes before the new rank 0 registers with the former
    start, which cannot confirm it, and again as soon as the number changes.

    Raises RuntimeError, as the store does, where ranks have not come within `timeout`; rank 0 names them.
    """
    if rank == 0:
        return _confirm(store, world_size, timeout)
    return _register(store, rank, timeout)


def _confirm(store: Store, world_size: int, timeout: timedelta) -> Store:
    start = _part(store, store.add("starts", 1))
    keys = [f"rank/{rank}" for rank in range(1, world_size)]
    try:
        start.wait(keys, timeout)
    except RuntimeError as error:
        missing = [f"rank {number}" for number, key in enumerate(keys, start=1) if not start.check([key])]
        raise RuntimeError(f"of {world_size} ranks have not come: {listed(missing, SHOWN)}") from error
    for key in keys:
        start.set(f"confirmed/{start.get(key).decode()}", "")
    return start


def _register(store: Store, rank: int, timeout: timedelta) -> Store:
    name, number = secrets.token_hex(8), 0
    start, until = store, time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        if (current := store.add("starts", 0)) != number:
            number, start = current, _part(store, current)
            start.set(f"rank/{rank}", name)
        if number and start.check([f"confirmed/{name}"]):
            return start
        time.sleep(POLL_SECONDS)
    raise RuntimeError("rank 0 has not come" if number == 0 else "rank 0 has not found all the others")


def _part(store: Store, number: int) -> Store:
    return PrefixStore(f"start-{number}", store)
