"""Agreement between the ranks of a run: that they are given the same, and whether one of them failed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

import llmkit
from llmkit.config.mistakes import listed, printable
from llmkit.config.redaction import without_access
from llmkit.end_file import end_of, write_end
from llmkit.errors import AlreadyReported, RunFault, UserError, from_report, to_report
from llmkit.parallel.mesh import Mesh
from llmkit.stopping import Stopped, interruptible

PATIENCE = timedelta(seconds=25)
"""How long a rank with an error waits for the reporting rank to print it."""
LINGER = timedelta(seconds=5)
"""How long the reporting rank then waits for the others: a launcher kills all when the first one ends."""
SHOWN = 8
"""Differences, and ranks, that a message names at most."""


def check_same_on_all_ranks(mesh: Mesh, facts: Mapping[str, str]) -> None:
    """Collective. Raises UserError on all ranks where `facts` differ, naming what differs on which ranks."""
    if mesh.world_size == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if len(set(_gather(mesh, digest))) == 1:
        return
    replies = _gather(mesh, json.dumps({"host": socket.gethostname(), "facts": dict(facts)}))
    ranks = [json.loads(reply) for reply in replies]
    names = list(dict.fromkeys(name for each in ranks for name in each["facts"]))
    lines = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for rank, each in enumerate(ranks):
            where = f"rank {rank} ({each['host']})"
            by_value.setdefault(each["facts"].get(name, "absent"), []).append(where)
        if len(by_value) > 1:
            values = [
                f"{printable(value, 100)} on {listed(where, SHOWN)}" for value, where in by_value.items()
            ]
            lines.append(f"  {name}: {'; '.join(values)}")
    hidden = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    raise UserError("\n".join(["the processes of this run are not the same:", *lines[:SHOWN], *hidden]))


@cache
def software_versions() -> dict[str, str]:
    """Versions of all packages that decide what is computed; llmkit's with a digest of its source."""
    source = hashlib.sha256()
    package = Path(llmkit.__file__).parent
    for path in sorted(package.rglob("*.py")):
        source.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return {
        "llmkit": f"{llmkit.__version__} (source {source.hexdigest()[:12]})",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "accelerate", "deepspeed")},
    }


@contextmanager
def fail_together(mesh: Mesh) -> Iterator[None]:
    """Collective. If any rank raises inside the block, every rank raises; inside none may wait for another.

    A UserError or RunFault of one rank is raised on all. Any other exception stays itself on its rank and
    is a RunFault on the others. Where a rank has given up its work (Stopped), all do.
    """
    error: Exception | Stopped | None = None
    try:
        with interruptible():
            yield
    except (Exception, Stopped) as caught:
        if mesh.world_size == 1:
            raise
        error = caught
    if mesh.world_size == 1:
        return
    report = {"host": socket.gethostname()}
    if error is not None:
        report |= to_report(error)
    replies = [json.loads(reply) for reply in _gather(mesh, json.dumps(report))]
    if error is not None and not isinstance(error, UserError | RunFault | Stopped):
        raise error
    stopped = [reply["message"] for reply in replies if reply.get("kind") == Stopped.__name__]
    failed = [rank for rank, reply in enumerate(replies) if reply.get("kind") not in (None, Stopped.__name__)]
    if failed:
        raise _joint_error(replies, failed) from error
    if stopped:
        raise Stopped(stopped[0])


def on_rank_zero(mesh: Mesh, work: Callable[[], str]) -> str:
    """Collective. Runs `work` on rank 0 and returns its result on all ranks; its errors are raised on all."""
    result = ""
    with fail_together(mesh):
        if mesh.rank == 0:
            result = work()
    return mesh.broadcast_text(result)


def report_once(mesh: Mesh, error: UserError | RunFault) -> NoReturn:
    """Ends this rank after an error that all ranks should have: one rank prints it, the others only end.

    The reporting rank is the first that has not failed or gone. Raises AlreadyReported; on a rank that does
    not hear from it within PATIENCE, the error itself. The ranks meet in the store, because a collective that
    some of them never join could not be given up.
    """
    absent: set[int] = set() if mesh.roll_call is None else mesh.roll_call.absent
    store = mesh.store
    assert store is not None
    first, *others = (rank for rank in range(mesh.world_size) if rank not in absent)
    if mesh.rank == first:
        print(f"llmkit: {without_access(error)}", file=sys.stderr, flush=True)
        with suppress(RunFault):
            write_end(end_of(error), os.environ)
    try:
        if mesh.rank == first:
            store.set("reported", "")
            if others:
                store.wait([f"heard/{rank}" for rank in others], LINGER)
        else:
            store.wait(["reported"], PATIENCE)
            store.set(f"heard/{mesh.rank}", "")
    except RuntimeError:
        if mesh.rank != first:
            raise type(error)(f"rank {mesh.rank} ({socket.gethostname()}): {error}") from error
    else:
        if dist.is_initialized():
            dist.destroy_process_group()
    raise AlreadyReported(2 if isinstance(error, UserError) else 1) from error


def _joint_error(replies: list[dict[str, str]], failed: list[int]) -> UserError | RunFault:
    """The one error for what went wrong on some ranks."""
    mistaken = [rank for rank in failed if replies[rank]["kind"] == UserError.__name__]
    where = [f"rank {rank} ({replies[rank]['host']})" for rank in failed]
    return from_report(
        replies[(mistaken or failed)[0]], listed(where, SHOWN) if len(failed) < len(replies) else ""
    )


def _gather(mesh: Mesh, text: str) -> list[str]:
    """`Mesh.all_gather_text`. Raises RunFault where a process has ended."""
    try:
        return mesh.all_gather_text(text)
    except RuntimeError as error:
        if (cause := mesh.cause_of(error)) is not error:
            raise cause from error
        raise RunFault(
            "a process of this run has ended or cannot be reached; see its own output "
            f"({str(error).splitlines()[0]})"
        ) from error
