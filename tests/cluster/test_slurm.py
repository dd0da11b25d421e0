"""Asking SLURM's programs."""

from __future__ import annotations

import pytest

from llmkit.errors import RunFault, UserError
from llmkit.slurm import Answer, ask, hostnames, own_environment, require_slurm
from tests.cluster.programs import Programs


def test_what_belongs_to_another_job_is_left_out() -> None:
    given = {
        "PATH": "/bin",
        "SLURM_CONF": "/c",
        "SLURM_CPU_BIND": "quiet",
        "SBATCH_ACCOUNT": "a",
        "PMI_RANK": "0",
        "SQUEUE_FORMAT": "%i",
    }
    assert own_environment(given) == {"PATH": "/bin", "SLURM_CONF": "/c"}


def test_arguments_and_script_arrive_as_they_are(programs: Programs) -> None:
    programs.say("sbatch", "12\n")
    assert ask("sbatch", "a b", "$(x)", script="häß\n") == Answer("12\n", "")
    (call,) = programs.calls("sbatch")
    assert call["arguments"] == ["a b", "$(x)"] and call["input"] == "häß\n"


def test_a_refusal_is_one_line(programs: Programs) -> None:
    programs.say("sbatch", errors="sbatch: error: invalid partition\nallocation failure: no\n", code=1)
    assert ask("sbatch").refusal == "invalid partition; allocation failure: no"
    programs.say("squeue", code=3)
    assert ask("squeue").refusal == "squeue ended with code 3"


def test_a_controller_that_is_away_is_no_mistake_of_the_user(programs: Programs) -> None:
    programs.say(
        "squeue",
        errors="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
        code=1,
    )
    with pytest.raises(RunFault, match="controller does not answer squeue"):
        ask("squeue")


def test_without_slurm(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs.folder))
    with pytest.raises(UserError, match=r"jobs: there is no squeue here.*login node"):
        require_slurm("jobs", "squeue")
    with pytest.raises(RunFault, match="sbatch cannot be started"):
        ask("sbatch")
    assert hostnames("n[1-2]") == []


def test_names_of_nodes(programs: Programs) -> None:
    programs.say("scontrol", "n1\nn2\n", given="show hostnames n[1-2]")
    programs.say("scontrol", errors="error: Invalid hostlist: n[\n", code=1, given="show hostnames n[")
    assert hostnames("n[1-2]") == ["n1", "n2"] and hostnames("") == []
    assert hostnames("n[") == []
