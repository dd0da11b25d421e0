"""Runs a function on several processes that form a world, as tests of anything distributed need it.

    results = run_ranks(4, "tests.model.test_tensor_parallel:compare", size=2)

Each process joins a gloo world over a file (no port to collide on), calls `compare(size=2)` and gives
back what it returns, which must be fit for JSON. A launch costs seconds: let it do several cases.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.fork_server import Process, start
from tests.limits import HANG

ROOT = Path(__file__).parents[1]
GRACE = 30.0
"""Seconds that the others have to end by themselves after one has failed: their errors may tell more."""


def run_ranks(
    world_size: int,
    function: str,
    *,
    joined: bool = True,
    may_die: Collection[int] = (),
    environment: dict[str, str] | None = None,
    timeout: float = HANG,
    **arguments: Any,
) -> list[Any]:
    """Calls "module:function" with `arguments` on `world_size` processes; what each returned.

    joined: whether the process group exists when the function is called; otherwise it has to make its
    own from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which are set as torchrun sets them.
    may_die: ranks whose failure is meant; their result is None unless they return one.
    Raises AssertionError with the tracebacks if another rank fails, or all take longer than `timeout`.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        call = {"function": function, "arguments": arguments, "joined": joined, "timeout": timeout}
        call["may_die"] = bool(may_die)
        (folder / "call.json").write_text(json.dumps(call))
        processes = [
            _start(folder, rank, {**os.environ, **variables, **(environment or {})})
            for rank, variables in enumerate(world(world_size))
        ]
        try:
            late = _wait(processes, may_die, timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait(HANG)
        codes = {rank: process.returncode for rank, process in enumerate(processes)}
        failed = [rank for rank, code in codes.items() if code != 0 and rank not in may_die]
        if failed:
            heading = f"no end after {timeout} s" if late else f"exit codes {codes}"
            raise AssertionError("\n".join([heading, *(_log(folder, rank) for rank in failed)]))
        results = [folder / f"result-{rank}.json" for rank in range(world_size)]
        return [json.loads(path.read_text()) if path.exists() else None for path in results]


def _start(folder: Path, rank: int, environment: dict[str, str]) -> Process:
    with (folder / f"log-{rank}.txt").open("wb") as log:
        return start("tests.ranks", [str(folder)], cwd=ROOT, environment=environment, log=log)


def _wait(processes: list[Process], may_die: Collection[int], timeout: float) -> bool:
    """Waits until all have ended, or until one has failed and the others had time to follow.

    Returns whether the time ran out.
    """
    last = time.monotonic() + timeout
    failed = False
    while any(process.poll() is None for process in processes):
        if not failed and any(p.poll() for rank, p in enumerate(processes) if rank not in may_die):
            failed, last = True, min(last, time.monotonic() + GRACE)
        if time.monotonic() > last:
            return not failed
        time.sleep(0.02)
    return False


def _log(folder: Path, rank: int) -> str:
    text = (folder / f"log-{rank}.txt").read_text(errors="replace")
    return f"--- rank {rank}:\n{text[-6000:]}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def agreed_port(folder: Path, name: str) -> int:
    """A free port that rank 0 chooses as all ranks ask for it; one chosen long before may be taken."""
    file = folder / f"port-{name}"
    if os.environ["RANK"] == "0":
        part = file.with_suffix(".part")
        part.write_text(str(free_ports(1)[0]))
        part.rename(file)
    until = time.monotonic() + HANG
    while not file.exists():
        assert time.monotonic() < until, "rank 0 has chosen no port"
        time.sleep(0.01)
    return int(file.read_text())


def world(size: int) -> list[dict[str, str]]:
    """The variables that torchrun would set for each of `size` ranks on this machine."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _main(folder: Path) -> None:
    """One of the processes."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    call = json.loads((folder / "call.json").read_text())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if call["joined"]:
        store = dist.FileStore(str(folder / "store"), world)
        limit = timedelta(seconds=call["timeout"])
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    module, _, name = call["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(**call["arguments"])
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    if dist.is_initialized() and not call["may_die"]:  # else a barrier would wait for the dead
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as llmkit's own processes, see llmkit/__main__.py


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
