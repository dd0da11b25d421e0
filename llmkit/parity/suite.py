"""Runs many cases on the processes of one launch, and compares each with a single process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from llmkit.parallel.mesh import Mesh
from llmkit.parity.cases import Case
from llmkit.parity.compare import Deviation, Reference, compare
from llmkit.parity.run import run_alone, run_case


@dataclass(frozen=True)
class Verdict:
    """How a case ended."""

    case: Case
    differences: list[Deviation]
    seconds: float

    @property
    def failures(self) -> list[str]:
        """What differs by more than is allowed."""
        return [str(each) for each in self.differences if each.is_failure]

    def worst(self, *sorts: str) -> float:
        """The largest difference of these sorts."""
        return max((each.found for each in self.differences if each.sort in sorts), default=float("nan"))

    def row(self) -> str:
        """A line of the table."""
        figures = [
            self.worst("initial loss", "loss"),
            self.worst("initial norm", "norm"),
            self.worst("initial gradient", "gradient"),
            self.worst("weight"),
            self.worst("first moment", "second moment"),
        ]
        text = "  ".join(f"{figure:8.1e}" for figure in figures)
        outcome = "FAILED: " + "; ".join(self.failures) if self.failures else "equal"
        return f"{self.case!s:<{WIDTH}}  {text}  {self.seconds:5.1f}  {outcome}"


WIDTH = 60
HEADING = (
    f"{'case':<{WIDTH}}  {'loss':>8}  {'norm':>8}  {'gradient':>8}  {'weight':>8}  {'moment':>8}  {'s':>5}"
)


def run_cases(
    cases: Iterable[Case], meshes: Callable[[int, int, int], Mesh], device: torch.device
) -> Iterator[Verdict]:
    """A verdict a case on rank 0, none on the others; all must run it to its end.

    cases: for as many processes as there are. meshes: tensor-, context- and expert-parallel
    size -> mesh.
    """
    alone = lru_cache(maxsize=None)(run_alone)
    for case in cases:
        start = time.monotonic()
        mesh = meshes(case.tensor, case.context, case.expert)
        try:
            found = run_case(case, mesh, device)
        except ValueError as error:
            differences = [Deviation("state", str(error), float("inf"), 0.0)]
        else:
            if mesh.rank > 0:
                continue
            same, fp32 = (
                alone(
                    case.model, case.masked, precision, device, case.optimizer, case.adapters, case.length
                )
                for precision in (case.precision, "fp32")
            )
            differences = compare(found, Reference(same, None if case.precision == "fp32" else fp32), case)
        if mesh.rank == 0:
            yield Verdict(case, differences, time.monotonic() - start)
