"""The nodes of the job that this process runs in: which have died, which its next start should not have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llmkit.errors import RunFault
from llmkit.slurm import ask, hostnames

USABLE = ("idle", "mix", "alloc", "comp", "plnd", "resv")
"""States of nodes that run jobs, as `sinfo -o %t` shortens them."""
POWER = "~#!%$@^-+"
"""What sinfo adds to the state of a node that is powered down, starts, or is planned for a job."""


class CannotLeaveOut(Exception):
    """Why nodes cannot be left out of the next start of a job."""


def services(nodes: str) -> dict[str, str]:
    """Since when SLURM's daemon runs on each of these nodes; "down" where it does not answer.

    Empty where SLURM itself does not.
    """
    found: dict[str, str] = {}
    for line in _lines("scontrol", "show", "node", "--oneliner", nodes):
        name = re.match(r"NodeName=(\S+)", line)
        state, since = re.search(r" State=(\S+)", line), re.search(r" SlurmdStartTime=(\S+)", line)
        if name and state and since:
            away = "DOWN" in state[1] or "NOT_RESPONDING" in state[1]
            found[name[1]] = "down" if away else since[1]
    return found


def lost(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Nodes that are away, or have started anew: what ran there is gone."""
    return [name for name, since in now.items() if since == "down" or before.get(name, since) != since]


def exclusion(job: str, hosts: Sequence[str], count: int) -> str:
    """The nodes that a job should not get: those that it does not get already, and `hosts`, joined by commas.

    count: nodes that the job needs; squeue knows it no more once SLURM ends the job, as where one has died.

    Raises CannotLeaveOut: the user has named the nodes to use (SLURM would wait for ever), too few would be
    left, or SLURM does not answer.
    """
    facts = _lines("squeue", "--noheader", f"--jobs={job}", "--format=%n|%x|%P")
    if len(facts) != 1 or facts[0].count("|") != 2:
        raise CannotLeaveOut("SLURM does not answer")
    required, excluded, partition = facts[0].split("|")
    if required:
        raise CannotLeaveOut(f"the job asks for {required} by name")
    left_out = {*hostnames(excluded), *hosts}
    remaining = _usable(partition) - left_out
    if len(remaining) < count:
        without = f"without {', '.join(hosts)} {len(remaining)} nodes of {partition}"
        raise CannotLeaveOut(f"{without} are left, and {count} are needed")
    return ",".join(sorted(left_out))


def _usable(partition: str) -> set[str]:
    lines = _lines("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N %t")
    pairs = [line.split() for line in lines]
    return {pair[0] for pair in pairs if len(pair) == 2 and pair[1].rstrip(POWER) in USABLE}


def _lines(program: str, *arguments: str) -> list[str]:
    """What a program of SLURM prints; nothing where it is refused or not answered."""
    try:
        answer = ask(program, *arguments)
    except RunFault:
        return []
    return [] if answer.refusal else answer.output.splitlines()
