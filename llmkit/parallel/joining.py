"""How the ranks of one start find each other in a store that may hold what an earlier start has left."""

from __future__ import annotations

import secrets
import sys
import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store

from llmkit.config.mistakes import listed
from llmkit.errors import UserError

SHOWN = 8
"""Ranks that a message names at most."""
POLL_SECONDS = 0.02
PATIENCE = timedelta(seconds=20)
"""How long rank 0 waits before it says for whom, and again."""


def join_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of `store` that only the ranks of this start use. Collective.

    A launcher that restarts its ranks in place (torchrun --max-restarts) keeps its store, and with it all
    that the ranks before have written: addresses of processes that are gone, reports of their faults. So
    rank 0 numbers the start, every other rank registers under this number with a random name, and goes on
    once rank 0 has confirmed the name. A rank that comes before the new rank 0 registers with the former
    start, which cannot confirm it, and again as soon as the number changes.

    Raises RuntimeError, as the store does, where ranks have not come within `timeout`; rank 0 names them, and
    says before that for whom it waits. Raises UserError where they do not agree on their number.
    """
    if rank == 0:
        return _confirm(store, world_size, timeout)
    return _register(store, rank, world_size, timeout)


def _confirm(store: Store, world_size: int, timeout: timedelta) -> Store:
    start = _part(store, store.add("starts", 1))
    keys = [f"rank/{rank}" for rank in range(1, world_size)]
    until = time.monotonic() + timeout.total_seconds()
    while missing := [f"rank {number}" for number, key in enumerate(keys, start=1) if not start.check([key])]:
        left = timedelta(seconds=until - time.monotonic())
        try:
            start.wait(keys, max(min(PATIENCE, left), timedelta(milliseconds=1)))
        except RuntimeError as error:
            names = listed(missing, SHOWN)
            if left <= PATIENCE:
                raise RuntimeError(f"of {world_size} ranks have not come: {names}") from error
            print(f"llmkit: waiting for {names} of {world_size}", file=sys.stderr, flush=True)
    sizes = {key: start.get(f"size/{key}").decode() for key in keys}
    unlike = [key for key, size in sizes.items() if size != str(world_size)]
    if unlike:
        others = listed([f"{sizes[key]} for {key.replace('/', ' ')}" for key in unlike], SHOWN)
        message = f"WORLD_SIZE is {world_size} for rank 0 and {others}: all processes need the same number"
        start.set("refused", message)
        raise UserError(message)
    for key in keys:
        start.set(f"confirmed/{start.get(key).decode()}", "")
    return start


def _register(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    name, number = secrets.token_hex(8), 0
    start, until = store, time.monotonic() + timeout.total_seconds()
    while time.monotonic() < until:
        if (current := store.add("starts", 0)) != number:
            number, start = current, _part(store, current)
            start.set(f"size/rank/{rank}", str(world_size))
            start.set(f"rank/{rank}", name)
        if number and start.check([f"confirmed/{name}"]):
            return start
        if number and start.check(["refused"]):
            raise UserError(start.get("refused").decode())
        time.sleep(POLL_SECONDS)
    raise RuntimeError("rank 0 has not come" if number == 0 else "rank 0 has not found all the others")


def _part(store: Store, number: int) -> Store:
    return PrefixStore(f"start-{number}", store)
