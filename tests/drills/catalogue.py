"""The drills: what is done to a run, by number. `python -m tests.drills` performs them.

A test that performs one is marked with its number, what it does and what must come of it, and records what
it measures:

    @pytest.mark.drill("D3", injection="kill -9 at each call of a save", expected="a checkpoint loads")
    def test_...(measured):
        measured("kill points", 92, "")
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

DRILLS = {
    "D1": "a rank is killed in a step",
    "D2": "rank 0, which hosts the store, is killed in a step",
    "D3": "a kill in each phase of a save, on each rank",
    "D4": "kills at random times",
    "D5": "a power cut in a save",
    "D6": "SIGTERM to one rank, or to all",
    "D7": "SLURM's signal before the time limit, then a requeue",
    "D8": "SLURM's preemption, scancel, scontrol requeue",
    "D9": "a second SIGTERM; SIGTERM in a save, an evaluation, a start",
    "D10": "a rank is stopped (SIGSTOP)",
    "D11": "a rank spins and holds the GIL",
    "D12": "a rank leaves out a collective",
    "D13": "a slow rank",
    "D14": "the network between two ranks fails for 5 s",
    "D15": "the network between two hosts fails for good",
    "D16": "the disk is full in a save: bytes, inodes",
    "D17": "the run folder turns read-only, fails, vanishes",
    "D18": "a slow disk",
    "D19": "bits flipped in a checkpoint",
    "D20": "files of a checkpoint cut short, emptied, missing, mixed",
    "D21": "damage in a shard of tokens or its index",
    "D22": "data replaced or appended between save and resume",
    "D23": "NaN gradients on one rank",
    "D24": "one bit of a gradient flipped on one rank",
    "D25": "a loss spike",
    "D26": "a weight flipped on one replica",
    "D27": "resume on the same number of ranks",
    "D28": "resume on other numbers of ranks, other ZeRO stages",
    "D29": "resume in the second epoch, with loader workers",
    "D30": "W&B refuses, hangs, answers with errors",
    "D31": "W&B's own process is killed or stopped",
    "D32": "the trainer is killed while it logs",
    "D33": "two jobs on one run folder",
    "D34": "the clock of a node is wrong, or jumps back",
    "D35": "mistakes in a configuration",
    "D36": "hostile YAML, job names and overrides",
    "D37": "hostile checkpoints, tags and links",
    "D38": "a tokenizer that does not fit",
    "D39": "out of memory",
    "D40": "one node differs from the others",
    "D41": "a fault that comes back at each start",
    "D42": "secrets in environment, settings, arguments and errors",
    "D43": "killed in the build of a kernel",
    "D44": "standard output blocks",
    "D45": "the clock is set back in a run",
    "D46": "ulimit -n 256",
    "D47": "a storm of requeues",
    "D48": "a start that is over for its batch system goes on",
    "D49": "random mixtures of sources, resumed on random numbers of ranks",
}


@dataclass(frozen=True)
class Drill:
    """What a test says of itself in `@pytest.mark.drill`."""

    number: str
    injection: str
    expected: str


def drills_of(item: pytest.Item) -> list[Drill]:
    """The drills that a test performs. Raises pytest.UsageError where its mark says no such thing."""
    found = []
    for mark in item.iter_markers("drill"):
        try:
            drill = Drill(*mark.args, **mark.kwargs)
        except TypeError as error:
            raise pytest.UsageError(
                f'{item.nodeid}: @pytest.mark.drill("D3", injection="...", expected="..."): {error}'
            ) from None
        if drill.number not in DRILLS:
            known = "; ".join(f"{number}: {title}" for number, title in DRILLS.items())
            raise pytest.UsageError(f"{item.nodeid}: there is no drill {drill.number}. There are {known}")
        found.append(drill)
    return found
