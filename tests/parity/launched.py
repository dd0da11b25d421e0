"""What the processes of a launch do: cases of the matrix, and the meshes of their world."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.cases import Case
from llmkit.parity.suite import run_cases


def judge(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of the table and the failures of each case."""
    verdicts = run_cases([Case(**each) for each in cases], mesh_maker(), torch.device("cpu"))
    return [{"row": verdict.row(), "failures": verdict.failures} for verdict in verdicts]


def mesh_maker() -> Callable[..., Mesh]:
    """Tensor-, context- and expert-parallel size -> mesh of the world that was joined, each made once; alone
    a mesh of one."""

    @cache
    def mesh(tensor_size: int, context_size: int = 1, expert_size: int = 1) -> Mesh:
        if not dist.is_initialized():
            return Mesh()
        return make_mesh(tensor_size, context_size=context_size, expert_size=expert_size)

    return mesh
