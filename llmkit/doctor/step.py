"""The step of a SLURM job that this process is a task of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from llmkit.end_file import own_host
from llmkit.errors import RunFault
from llmkit.ports import ports_of
from llmkit.slurm import hostnames

TRIED = 20
"""Ports that are tried, where others listen on the first ones."""


@dataclass(frozen=True)
class Step:
    """A job step with several nodes, and this one's place in it.

    name: of the step. nodes: their names, in order. index: of this one among them.
    """

    name: str
    nodes: tuple[str, ...]
    index: int

    @property
    def ports(self) -> list[int]:
        """Where the first node may listen: steps that share a node begin at others."""
        job, step, *_ = (int(part) if part.isdecimal() else 0 for part in f"{self.name}.".split("."))
        return list(islice(ports_of(job, step), TRIED))


def step_of(environment: Mapping[str, str]) -> Step | None:
    """The step that this process is a task of; None where it has one node, or there is none.

    Raises RunFault where SLURM does not tell the names of its nodes.
    """
    count = environment.get("SLURM_STEP_NUM_NODES", "1")
    if not count.isdecimal() or int(count) < 2:
        return None
    nodes = hostnames(environment.get("SLURM_STEP_NODELIST", ""))
    own = own_host(environment)
    if len(nodes) != int(count) or own not in nodes:
        raise RunFault(
            f"doctor: SLURM does not tell the names of the {count} nodes of this step, one of them {own} "
            "(scontrol show hostnames)"
        )
    name = f"{environment.get('SLURM_JOB_ID', '0')}.{environment.get('SLURM_STEP_ID', '0')}"
    return Step(name, tuple(nodes), nodes.index(own))
