"""Layouts in fp8 on the processes of a launch; see test_fp8.py."""

from __future__ import annotations

from typing import Any

import torch

from llmkit.parity.cases import Case
from llmkit.parity.compare import Reference, compare
from llmkit.parity.run import run_alone, run_case
from tests.parity.launched import mesh_maker

CPU = torch.device("cpu")


def run(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case the losses, and what differs from a single process by more than is allowed."""
    meshes, found = mesh_maker(), []
    same, fp32 = (run_alone("even", False, precision, CPU) for precision in ("fp8", "fp32"))
    for each in cases:
        case = Case(**each)
        trajectory = run_case(case, meshes(case.tensor), CPU)
        differences = compare(trajectory, Reference(same, fp32), case)
        failures = [str(difference) for difference in differences if difference.is_failure]
        found.append({"losses": trajectory.losses, "failures": failures})
    return found
