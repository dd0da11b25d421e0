"""A process that owns a run: who it is, for people, and whether it still runs, where that can be seen."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from llmkit import proc
from llmkit.file_lock import now


@dataclass(frozen=True)
class Owner:
    """A process that owns, or has owned, a run.

    host, pid, started (time of day), command: for messages. machine: the boot of a machine and the process
    table in which pid counts; "" where that is unknown. born: when the process began, in clock ticks since
    that boot. job, restart: of SLURM, "" and 0 outside. inode: of the folder in which this was noted, which
    is another one in a copy of the run. released: whether it has let the run go.
    """

    host: str
    pid: int
    started: str
    command: str
    machine: str
    born: str
    job: str = ""
    restart: int = 0
    inode: int = 0
    released: bool = False

    @classmethod
    def of_this_process(cls, command: str, environment: Mapping[str, str]) -> Self:
        """This process. environment: in which SLURM tells of its job."""
        restart = environment.get("SLURM_RESTART_COUNT", "0")
        _, born = proc.state_and_start(os.getpid())
        return cls(
            socket.gethostname(), os.getpid(), now(), command, _machine(), born,
            environment.get("SLURM_JOB_ID", ""), int(restart) if restart.isdecimal() else 0,
        )  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self | None:
        """The owner as `to_json` gave it; None for anything else."""
        kinds = {name: type(value) for name, value in asdict(cls("", 0, "", "", "", "")).items()}
        if {name: type(stored.get(name)) for name in kinds} != kinds:
            return None
        return cls(**{name: stored[name] for name in kinds})

    def to_json(self, released: bool = False) -> dict[str, Any]:
        """For a file. released: whether it lets the run go."""
        return asdict(replace(self, released=released))

    def __str__(self) -> str:
        job = f" in SLURM job {self.job}" if self.job else ""
        stopped = ", stopped by a signal" if self._state_here() in ("T", "t") else ""
        return f"process {self.pid} on {self.host}{job}, started {self.started} ({self.command}){stopped}"

    def runs_here(self) -> bool | None:
        """Whether the process runs; None where only its own machine could tell."""
        state = self._state_here()
        return None if state is None else state not in ("", "Z", "X")

    def succeeds(self, before: Owner) -> bool:
        """Whether this is a later start of the same SLURM job: then SLURM has ended the earlier one."""
        return self.job != "" and self.job == before.job and self.restart > before.restart

    def _state_here(self) -> str | None:
        """The letter of the process's state in /proc; "" where it is gone; None on another machine."""
        if not self.machine or self.machine != _machine():
            return None
        state, born = proc.state_and_start(self.pid)
        return state if born == self.born else ""


def _machine() -> str:
    try:
        boot = (proc.PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(proc.PROC / 'self/ns/pid')}"
    except OSError:
        return ""
