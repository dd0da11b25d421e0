"""Kills a save with SIGKILL at each of its system calls that change the disk, one after the other.

Usage: python -m tests.checkpoint.killed_saves ROOT, as a child of the fork server: it has one thread. For
each scenario and each call, ROOT/SCENARIO/NUMBER is then a folder of checkpoints as the kill left it;
ROOT/SCENARIO/calls.txt names the calls. With a power cut, files that were not synced lose what was written
to them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint import write, writer
from llmkit.checkpoint.pieces import Piece

ELEMENTS = 10_000  # two files of 40 kB each
CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


def save(root: Path, step: int, value: float, keep_last: int) -> None:
    """A checkpoint whose tensors all hold `value`."""
    writer.FILE_BYTES = 2 * ELEMENTS
    pieces = [
        Piece(name, "master", (ELEMENTS,), ((0, ELEMENTS),), (0, ELEMENTS), torch.full((ELEMENTS,), value))
        for name in ("a", "b")
    ]
    files = {"tokenizer.json": b"{}"}
    write.save(
        root,
        step,
        pieces,
        state={"value": value},
        model={},
        config={},
        extra_files=files,
        keep_last=keep_last,
    )


def next_step(root: Path) -> None:
    """The newest of two is followed, the older one deleted."""
    save(root, 2, 2.0, keep_last=1)


def same_step(root: Path) -> None:
    """A checkpoint is replaced by another of the same step."""
    save(root, 1, 2.0, keep_last=1)


def after_a_crash(root: Path) -> None:
    """What earlier saves left behind is cleared first, then the step is replaced."""
    same_step(root)


def prepare(scenario: Callable[[Path], None], root: Path) -> None:
    """The folder before the save that is killed."""
    save(root, 1, 1.0, keep_last=5)
    if scenario is after_a_crash:
        shutil.copytree(root / "step-00000001", root / ".tmp-step-00000003")
        shutil.copytree(root / "step-00000001", root / ".tmp-old-step-00000001")
        (root / "step-00000001").rename(root / ".replaced-step-00000001")


def watch(
    kill_at: int | None, power_cut: bool = False, signal_number: int = signal.SIGKILL,
    counts: Callable[[], bool] = lambda: True,
) -> list[str]:  # fmt: skip
    """Count the calls from now on, and die before call number `kill_at`. Returns the calls, live.

    signal_number: another one to send to this process, as SIGSTOP, after which it goes on. counts: whether a
    call counts, asked in the thread that makes it.
    """
    seen: list[str] = []
    unsynced: dict[int, tuple[int, int]] = {}  # descriptor -> device and inode

    def die() -> None:
        if power_cut:
            for descriptor, identity in unsynced.items():
                if _identity(descriptor) == identity:
                    os.truncate(descriptor, 0)
        os.kill(os.getpid(), signal_number)

    def wrap(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not counts() or (name == "open" and not args[1] & os.O_CREAT):
                return real(*args, **kwargs)
            if len(seen) == kill_at:
                if name == "write" and signal_number == signal.SIGKILL:
                    real(args[0], args[1][: len(args[1]) // 2])
                die()
            seen.append(name)
            result = real(*args, **kwargs)
            if name == "open":
                kept = os.dup(int(result))  # outlives the close that follows
                unsynced[kept] = _identity(kept) or (0, 0)
            elif name == "fsync":
                for descriptor in [d for d, identity in unsynced.items() if identity == _identity(args[0])]:
                    del unsynced[descriptor]
            return result

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    return seen


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; the status it ended with."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def drill(root: Path, scenario: Callable[[Path], None], power_cut: bool) -> None:
    """Run the scenario once to count its calls, then once for each call."""
    root.mkdir()
    template = root / "template"
    prepare(scenario, template)

    def count() -> None:
        shutil.copytree(template, root / "count")
        seen = watch(None)
        scenario(root / "count")
        (root / "calls.txt").write_text("\n".join(seen))

    assert in_child(count) == 0
    for number in range(len((root / "calls.txt").read_text().split())):

        def work(number: int = number) -> None:
            shutil.copytree(template, root / str(number))
            watch(number, power_cut)
            scenario(root / str(number))

        assert in_child(work) == signal.SIGKILL


if __name__ == "__main__":
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010  # a kill loses nothing that is not synced
    for scenario in (next_step, same_step, after_a_crash):
        drill(Path(sys.argv[1]) / scenario.__name__, scenario, power_cut=False)
        drill(Path(sys.argv[1]) / f"power_cut_{scenario.__name__}", scenario, power_cut=True)
