"""Kills a run with SIGKILL at calls to the disk of the thread that writes its checkpoints.

Usage: python -m tests.loop.killed_background FOLDER LAYOUT EVERY, as a child of the fork server: it has one
thread. In FOLDER is a project; EVERY: of the calls, each so many-th is a point at which a rank is killed.
FOLDER/LAYOUT.json then tells of each point: the rank, the call, the checkpoint that is found and verifies,
how the others have ended, and, where the run was started again, its exit code. Then rank 0 is stopped for a
moment (SIGSTOP) instead, at each STOPS-th of its calls.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from llmkit.checkpoint import read
from llmkit.checkpoint.commit import tidy
from llmkit.parallel import agreement, roll_call
from tests.checkpoint.killed_saves import watch
from tests.loop.rollback_cases import run
from tests.program import train
from tests.ranks import world

STEPS = ["train.max_steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=1"]
STEPS += ["checkpoint.background=true", "run.deterministic=false"]
LAYOUTS: dict[str, list[str]] = {
    "native": [],
    "zero3-tp2": ["parallel.zero_stage=3", "parallel.tensor_parallel_size=2"],
}
RANKS = {"native": 1, "zero3-tp2": 4}
AGAIN = 8
"""Of the points of several ranks, every so many-th run is started again; of one rank, every run."""


STOPS = 23


def saving() -> bool:
    """Whether this is the thread that writes a checkpoint."""
    return threading.current_thread().name == "save"


def begin(
    layout: str, name: str, victim: int | None, at: int | None, send: int = signal.SIGKILL
) -> list[int]:
    """Starts the ranks of a run, of which one sends itself a signal before its call number `at`; their ids.

    victim: None = none does, and each writes down its calls.
    """
    children, variables = [], world(RANKS[layout])
    Path(f"port-{name}").unlink(missing_ok=True)  # of the start before, where the ranks do not meet
    for rank in range(RANKS[layout]):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = rank_process(layout, name, rank, variables[rank], victim, at, send)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children


def rank_process(
    layout: str, name: str, rank: int, variables: dict[str, str], victim: int | None, at: int | None,
    send: int,
) -> int:  # fmt: skip
    """One rank; its exit code."""
    agreement.LINGER, roll_call.ANSWER_SECONDS = timedelta(), 0.2  # the others do not wait for the dead
    seen = watch(at, signal_number=send, counts=saving) if victim in (None, rank) else []
    if RANKS[layout] == 1:
        code = train(f"run.name={name}", *STEPS, *LAYOUTS[layout])
    else:
        os.environ.update(variables)
        code = run(name, [*STEPS, *LAYOUTS[layout]])
    if victim is None:
        Path(f"{name}.{rank}.json").write_text(json.dumps(seen))
    return code


def ended(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def point(layout: str, name: str, victim: int, number: int, again: bool) -> dict[str, Any]:
    """What is left of a run of which a rank is killed."""
    codes = ended(begin(layout, name, victim, number))
    root = Path("runs") / name / "checkpoints"
    said: list[str] = []
    newest = read.newest(root, said.append) if root.is_dir() else None
    found = {"codes": codes, "said": said, "newest": None if newest is None else newest.step}
    found["bad"] = [problem for folder in read.folders(root) for problem in read.verify(folder)]
    if again:
        found["again"] = ended(begin(layout, name, victim, None))
    elif root.is_dir():
        tidy(root)
    found["left"] = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    return found


def stopped(layout: str, name: str, number: int) -> dict[str, Any]:
    """What comes of a run whose rank 0 is stopped in a save, and what there is meanwhile."""
    children = begin(layout, name, 0, number, signal.SIGSTOP)
    _, status = os.waitpid(children[0], os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    newest = read.newest(Path("runs") / name / "checkpoints", lambda line: None)
    os.kill(children[0], signal.SIGCONT)
    return {"name": name, "meanwhile": None if newest is None else newest.step, "codes": ended(children)}


def main(folder: Path, layout: str, every: int) -> None:
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010  # a kill loses nothing that is not synced
    os.chdir(folder)
    straight = f"{layout}-straight"
    assert set(ended(begin(layout, straight, None, None))) == {0}
    calls = [json.loads(Path(f"{straight}.{rank}.json").read_text()) for rank in range(RANKS[layout])]
    points = [(rank, number) for rank, names in enumerate(calls) for number in range(len(names))][::every]
    found = []
    for index, (rank, number) in enumerate(points):
        again = RANKS[layout] == 1 or index % AGAIN == 0
        left = point(layout, f"{layout}-{rank}-{number}", rank, number, again)
        found.append({"rank": rank, "number": number, "call": calls[rank][number], **left})
    stops = range(0, len(calls[0]), STOPS) if every < 10 else []
    paused = [stopped(layout, f"{layout}-stopped-{number}", number) for number in stops]
    Path(f"{layout}.json").write_text(json.dumps({"straight": straight, "points": found, "stops": paused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
