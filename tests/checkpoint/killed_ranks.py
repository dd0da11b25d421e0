"""Kills, or stops for a moment, one of two ranks that save together, at each of its calls to the disk.

Usage: python -m tests.checkpoint.killed_ranks ROOT, as a child of the fork server: it has one thread.
ROOT/KIND-RANK-NUMBER is then a folder of checkpoints as rank RANK left it that was killed or stopped (KIND)
before its call NUMBER; ROOT/ended.json says how each of them, and the other rank, ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmkit.checkpoint import read, write
from llmkit.checkpoint.pieces import Piece
from llmkit.errors import RunFault
from llmkit.parallel.mesh import make_mesh
from tests.checkpoint.killed_saves import watch
from tests.limits import HANG

ELEMENTS = 1000
FAULT, BUG = 3, 4
"""Exit codes of a rank: its save failed as it should, or otherwise."""
EVERY = 3
"""Of the calls, every third is a place where a rank is stopped."""


def save(root: Path, step: int, value: float, rank: int) -> None:
    """One half of two tensors whose elements are all `value`; the older checkpoint is deleted."""
    half = ELEMENTS // 2
    part = (rank * half, rank * half + half)
    pieces = [
        Piece(name, "master", (ELEMENTS,), ((0, ELEMENTS),), part, torch.full((half,), value))
        for name in ("a", "b")
    ]
    write.save(
        root, step, pieces, state={"value": value}, model={}, config={},
        extra_files={"tokenizer.json": b"{}"}, keep_last=1, mesh=make_mesh(1),
    )  # fmt: skip


def rank_process(rank: int, store: Path, work: Callable[[], None]) -> int:
    """Starts a rank of a world of two; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = BUG
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2,
            timeout=timedelta(seconds=HANG),
        )  # fmt: skip
        work()
        code = 0
    except RunFault:
        code = FAULT
    finally:
        os._exit(code)
    raise AssertionError


def both(root: Path, arm: Callable[[int], None]) -> list[int]:
    """Starts the ranks, which save step 2; `arm` is called in each with its number. Their process ids."""
    store = root.with_suffix(".store")

    def work(rank: int) -> None:
        arm(rank)
        save(root, 2, 2.0, rank)

    return [rank_process(rank, store, lambda rank=rank: work(rank)) for rank in range(2)]


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count(template: Path, root: Path) -> list[list[str]]:
    """The calls of each rank in a save that nothing disturbs."""
    shutil.copytree(template, root)
    lists = [root.with_suffix(f".{rank}.txt") for rank in range(2)]

    def work(rank: int) -> None:
        seen = watch(None)
        save(root, 2, 2.0, rank)
        lists[rank].write_text("\n".join(seen))

    store = root.with_suffix(".store")
    children = [rank_process(rank, store, lambda rank=rank: work(rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    return [path.read_text().split() for path in lists]


def killed(root: Path, victim: int, number: int) -> list[int]:
    """Exit codes where a rank is killed."""

    def arm(rank: int) -> None:
        if rank == victim:
            watch(number)

    return [ended(child) for child in both(root, arm)]


def stopped(root: Path, victim: int, number: int) -> list[int]:
    """Exit codes where a rank is stopped, and goes on once what is there then has been read."""

    def arm(rank: int) -> None:
        if rank == victim:
            watch(number, signal_number=signal.SIGSTOP)

    children = both(root, arm)
    _, status = os.waitpid(children[victim], os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    found = read.newest(root, lambda line: None)
    os.kill(children[victim], signal.SIGCONT)
    codes = [ended(child) for child in children]
    return codes if found is not None and found.step in (1, 2) else [BUG, BUG]


def main(root: Path) -> None:
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010  # a kill loses nothing that is not synced
    template = root / "template"

    def first(rank: int) -> None:
        save(template, 1, 1.0, rank)

    store = root / "first.store"
    children = [rank_process(rank, store, lambda rank=rank: first(rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    calls = count(template, root / "count")
    found: dict[str, Any] = {"calls": calls, "codes": {}}
    for victim, names in enumerate(calls):
        for number in range(len(names)):
            for kind, act in (("killed", killed), ("stopped", stopped)):
                if kind == "killed" or number % EVERY == 0:
                    folder = root / f"{kind}-{victim}-{number}"
                    shutil.copytree(template, folder)
                    found["codes"][folder.name] = act(folder, victim, number)
    (root / "ended.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
