"""What the processes of tests/parallel/test_world.py do."""

from __future__ import annotations

import contextlib
import io
import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from llmkit.errors import AlreadyReported, RunFault, UserError
from llmkit.loop.control import Agreed, Control
from llmkit.parallel import agreement
from llmkit.parallel.agreement import check_same_on_all_ranks, fail_together, on_rank_zero
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group
from tests.limits import HANG, LONGER

LIMIT = timedelta(seconds=HANG)


def outcome(work: Any, *arguments: Any) -> str:
    """What a piece of work returns or raises, in words."""
    try:
        return str(work(*arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def agreements() -> dict[str, Any]:
    """Every way to agree and to differ, of three ranks in one world."""
    found: dict[str, Any] = {}
    with process_group(rank_info_from_env(os.environ), LIMIT) as mesh:
        found["before"] = [mesh.rank, mesh.world_size, dist.get_backend(), mesh.timeout.total_seconds()]
        found["same"] = outcome(check_same_on_all_ranks, mesh, {"a": "1", "b": "2"})
        found["different"] = outcome(
            check_same_on_all_ranks, mesh, {"a": "1", "b": "x" if mesh.rank == 1 else "y"}
        )

        def part(failing: dict[int, Exception]) -> str:
            with fail_together(mesh):
                if mesh.rank in failing:
                    raise failing[mesh.rank]
            return "done"

        found["all do it"] = outcome(part, {})
        found["one cannot"] = outcome(part, {1: UserError("no such file")})
        found["none can"] = outcome(part, dict.fromkeys(range(3), UserError("no such file")))
        found["a fault"] = outcome(part, {2: RunFault("disk full")})
        found["a mistake beside a fault"] = outcome(part, {0: RunFault("full"), 2: UserError("wrong")})
        found["a bug"] = outcome(part, {1: KeyError("oops")})
        found["texts"] = mesh.all_gather_text("é" * mesh.rank)
        found["bytes to first"] = [each.hex() for each in mesh.gather_bytes(b"\xff\0" * (3 - mesh.rank))]
        found["from first"] = mesh.broadcast_text("é" * (3 - mesh.rank))
        found["first only"] = outcome(on_rank_zero, mesh, lambda: f"of rank {mesh.rank}")
        mesh = mesh.split(tensor=3)
        found["cut"] = [mesh["data"].size, mesh["tensor"].rank, dist.get_world_size(mesh["tensor"].group)]
        found["control"] = exchanges(Control(mesh), mesh.rank)
        found["same batches"] = outcome(batches, Control(mesh), [7, 2**63 - 1])
        found["other batches"] = outcome(batches, Control(mesh), [7, 8 if mesh.rank == 1 else 9])
        found["count"] = mesh.count_over_data(5)
    found["left"] = not dist.is_initialized()
    return found


def exchanges(control: Control, rank: int) -> list[list[int]]:
    """What holds after each of some steps."""
    requests = [
        Agreed(save=1 if rank == 0 else 0, failed=int(rank == 2)),
        Agreed(evaluate=1 if rank == 1 else 0, max_steps=100 + rank),
        Agreed(stop=rank, unready=int(rank == 1)),
        Agreed(),
        Agreed(stop=1),
    ]
    held = [list(control.exchange(request)) for request in requests]
    control.close()
    return held


def batches(control: Control, hashes: list[int]) -> str:
    """Steps of tensor-parallel peers on batches with these hashes."""
    for value in hashes:
        control.exchange(Agreed(), value)
    control.close()
    return "the same"


def end_of_a_world(failing: list[int], patience: float = HANG, finished: bool = False) -> dict[str, Any]:
    """What comes out of a world in which some ranks raise an error and the others wait for them.

    finished: the others have nothing left to do.
    patience: seconds that a rank with an error waits for the first one to print it, and that one for it.
    """
    agreement.PATIENCE = agreement.LINGER = timedelta(seconds=patience)
    errors = io.StringIO()
    end = "none"
    try:
        with contextlib.redirect_stderr(errors), process_group(rank_info_from_env(os.environ), LIMIT) as mesh:
            if mesh.rank in failing:
                raise RunFault("the disk is full")
            if not finished:
                mesh.all_gather_text("waits for the others")
    except AlreadyReported as told:
        end = f"told, code {told.code}"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    return {"end": end, "printed": errors.getvalue()}


def first_fails() -> dict[str, Any]:
    """What comes out of a world whose first rank has a bug that the others do not have."""
    agreement.PATIENCE = LONGER
    errors = io.StringIO()
    end = "none"
    try:
        with contextlib.redirect_stderr(errors), process_group(rank_info_from_env(os.environ), LIMIT) as mesh:
            if mesh.rank == 0:
                raise KeyError("oops")
            mesh.all_gather_text("waits for the others")
    except AlreadyReported as told:
        end = f"told, code {told.code}"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    return {"end": end, "printed": errors.getvalue()}


def one_dies() -> str:
    """The second of two ranks ends without reporting an error while the first waits for it."""
    agreement.PATIENCE = LONGER
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), process_group(rank_info_from_env(os.environ), LIMIT) as mesh:
            if mesh.rank == 1:
                os._exit(9)
            with fail_together(mesh):
                pass
    except AlreadyReported as end:
        return f"code {end.code}: {errors.getvalue()}"
    return "nothing noticed"


def waits_alone() -> str:
    """One process where two should be."""

    def join() -> None:
        with process_group(rank_info_from_env(os.environ), timedelta(seconds=3)):
            pass

    return outcome(join)
