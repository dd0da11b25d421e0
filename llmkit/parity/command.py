"""`llmkit doctor --parity`: the cases on this machine, or on the processes that a launcher has started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import cache

import torch

from llmkit.device import device_facts
from llmkit.engine.deepspeed import import_deepspeed
from llmkit.errors import RunFault, UserError
from llmkit.kernels.compiler import compiler_missing
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.rank_info import RankInfo, rank_info_from_env
from llmkit.parallel.world import process_group
from llmkit.parity.cases import FURTHER, Case
from llmkit.parity.covering import covering
from llmkit.parity.run import refusal
from llmkit.parity.suite import HEADING, run_cases
from llmkit.ports import free_port

TIMEOUT = timedelta(minutes=30)
"""That ranks wait for each other: the first one computes the references, on a machine that may be busy."""
GRACE = 15.0
"""Seconds that processes have to follow one that ended with an error."""


def parity_command(everything: bool, environment: Mapping[str, str]) -> int:
    """Prints a table of the cases; returns the exit code, 0 if all are equal to a single process.

    everything: each triple of settings is tried instead of each pair. A process alone starts others for
    the cases that need them. One of several that a launcher has started takes part in the cases for as
    many; so a cluster is tried with its own network and devices.
    """
    cases = covering(strength=3 if everything else 2) + FURTHER
    sizes = sorted({case.world_size for case in cases})
    rank_info = rank_info_from_env(environment)
    if rank_info.world_size > 1:
        if rank_info.world_size not in sizes:
            listed = ", ".join(map(str, sizes))
            raise UserError(f"the cases are for {listed} processes; {rank_info.world_size} were started")
        return _run([case for case in cases if case.world_size == rank_info.world_size], rank_info)
    start = time.monotonic()
    print(f"{len(cases)} cases; differences from a single process, relative\n{HEADING}", flush=True)
    codes = [_run([case for case in cases if case.world_size == 1], rank_info)]
    codes += [_launch(size, everything, environment) for size in sizes if size > 1]
    outcome = "differences were found" if any(codes) else "all are equal"
    print(f"{outcome} ({time.monotonic() - start:.0f} s)")
    return max(codes)


def _run(cases: list[Case], rank_info: RankInfo) -> int:
    """The cases, on the processes of this launch; rank 0 prints."""
    import_deepspeed()
    failed = 0
    with process_group(rank_info, TIMEOUT, needs_group=True) as joined:
        if why := compiler_missing(joined.device):
            if joined.rank == 0:
                print(f"torch.compile cannot be tried: {why}", flush=True)
            cases = [case for case in cases if not case.compiled]
        facts = device_facts(joined.device)
        refused = {case: why for case in cases if case.forms and (why := refusal(case, facts))}
        cases = [case for case in cases if case not in refused]
        if joined.rank == 0:
            for case, why in refused.items():
                print(f"{case} is left out: {why}", flush=True)

        @cache
        def mesh(tensor_size: int, context_size: int, expert_size: int) -> Mesh:
            return joined.split(tensor=tensor_size, context=context_size, expert=expert_size)

        for verdict in run_cases(cases, mesh, joined.device):
            print(verdict.row(), flush=True)
            failed += bool(verdict.failures)
    return 1 if failed else 0


def _launch(size: int, everything: bool, environment: Mapping[str, str]) -> int:
    """This command again, on `size` processes of this machine. Raises RunFault if one of them broke off."""
    common = {**environment, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if torch.cuda.device_count() < size:
        common["CUDA_VISIBLE_DEVICES"] = ""  # not a GPU each: all on the CPU
    command = [sys.executable, "-m", "llmkit", "doctor", "--parity", *["--all"] * everything]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    try:
        _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    if any(codes[1:]) or codes[0] not in (0, 1):
        raise RunFault(f"the cases for {size} processes broke off (exit codes {codes})")
    return codes[0]


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or one has failed and the others had time to follow."""
    until: float | None = None
    while any(process.poll() is None for process in processes):
        if until is None and any(process.poll() for process in processes):
            until = time.monotonic() + GRACE
        if until is not None and time.monotonic() > until:
            return
        time.sleep(0.1)
