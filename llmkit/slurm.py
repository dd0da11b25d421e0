"""Asks SLURM by its own programs, which every version has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from llmkit.config.mistakes import printable
from llmkit.errors import RunFault, UserError

SECONDS = 120.0
"""How long a program may take: where the controller is away they try for about a minute."""
OF_OTHER_JOBS = (
    "SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SALLOC_", "SRUN_", "PMI_", "PMI2_", "PMIX_", "PALS_",
)  # fmt: skip
"""Begin variables of an interactive job, which would bind the processes of another one to its cores, and
variables that change what these programs do."""
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Which of them say what the cluster is."""
UNREACHABLE = (
    "contact slurm controller", "configuration source", "socket timed out", "connection refused",
    "zero bytes were transmitted",
)  # fmt: skip
"""In what these programs say where the controller does not answer."""


class Answer(NamedTuple):
    """What a program has printed. refusal: what it says is wrong, on one line; "" where it has ended well."""

    output: str
    refusal: str


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for SLURM's programs: without what belongs to a job that this shell may be in."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT or not name.startswith(OF_OTHER_JOBS)
    }


def require_slurm(command: str, program: str) -> None:
    """Raises UserError where SLURM is not installed. command: of llmkit, for the message."""
    if shutil.which(program) is None:
        raise UserError(
            f"{command}: there is no {program} here, so this is no machine of a SLURM cluster; run it on the "
            "cluster's login node"
        )


def ask(
    program: str, *arguments: str, environment: Mapping[str, str] | None = None, script: str | None = None,
    seconds: float = SECONDS,
) -> Answer:  # fmt: skip
    """Runs a program of SLURM. script: what it reads. seconds: how long it may take.

    Raises RunFault where the cluster does not answer.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            input=None if script is None else script.encode(),
            stdin=subprocess.DEVNULL if script is None else None,
            env=own_environment(os.environ if environment is None else environment),
            capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RunFault(f"{program}: SLURM's controller has not answered for {seconds:.0f} s") from error
    except OSError as error:
        raise RunFault(f"{program} cannot be started: {error.strerror}") from error
    output, errors = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode == 0:
        return Answer(output, "")
    said = [line.partition("error: ")[2] or line for line in errors.splitlines() if line.strip()]
    refusal = printable("; ".join(said), 600) or f"{program} ended with code {done.returncode}"
    if any(sign in refusal.lower() for sign in UNREACHABLE):
        raise RunFault(f"SLURM's controller does not answer {program}: {refusal}")
    return Answer(output, refusal)


def hostnames(nodes: str, seconds: float = SECONDS) -> list[str]:
    """The names in a list of SLURM's, such as "n[1-2],m"; none where SLURM does not tell them."""
    try:
        answer = ask("scontrol", "show", "hostnames", nodes, seconds=seconds) if nodes else Answer("", "")
    except RunFault:
        return []
    return [] if answer.refusal else answer.output.split()
