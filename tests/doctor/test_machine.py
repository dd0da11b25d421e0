"""Limits of the system, each as it is when it is too low."""

from __future__ import annotations

import resource
from pathlib import Path

from llmkit.doctor.machine import (
    cpu_finding,
    locked_memory_finding,
    machine_findings,
    memory_finding,
    numa_finding,
    open_files_finding,
    shared_memory_finding,
)


def test_a_machine_tells_what_it_has() -> None:
    found = {each.name: each for each in machine_findings()}
    assert set(found) == {
        "system", "cpu", "load", "memory", "numa", "open files", "locked memory", "shared memory",
    }  # fmt: skip
    assert "cores" in found["cpu"].value and "GiB" in found["memory"].value


def test_few_open_files_are_remarked_on_with_what_helps() -> None:
    assert open_files_finding((2**16, 2**20)).state == "ok"
    assert (
        open_files_finding((resource.RLIM_INFINITY, resource.RLIM_INFINITY)).value
        == "unlimited of at most unlimited"
    )
    low = open_files_finding((256, 4096))
    assert (low.state, low.value) == ("warn", "256 of at most 4096")
    assert "ulimit -n 4096" in low.advice
    assert "administrator" in open_files_finding((256, 256)).advice


def test_locked_memory_matters_where_there_is_infiniband() -> None:
    assert locked_memory_finding(2**16, infiniband=False).state == "ok"
    assert locked_memory_finding(2**16, infiniband=True).state == "warn"
    assert locked_memory_finding(resource.RLIM_INFINITY, infiniband=True).state == "ok"


def test_a_task_bound_to_one_core_is_remarked_on(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: AMD EPYC 9554\n")
    assert cpu_finding(64, 128, tmp_path / "cpuinfo").value == "64 of 128 cores of AMD EPYC 9554"
    bound = cpu_finding(1, 128, tmp_path / "absent")
    assert bound.state == "warn" and "SLURM_CPU_BIND" in bound.advice
    assert cpu_finding(1, 1, tmp_path / "absent").state == "ok"


def test_memory_nodes_are_counted(tmp_path: Path) -> None:
    for name in ("node0", "node1", "online"):
        (tmp_path / name).mkdir()
    assert numa_finding(tmp_path).value == "2 nodes"


def test_little_memory_is_remarked_on() -> None:
    assert memory_finding(None, 2**35, 2**36).state == "ok"
    little = memory_finding(2**36, 2**30, 2**36)
    assert little.state == "warn" and little.value.startswith(
        "1.0 GiB of 64.0 GiB available, 64.0 GiB for this"
    )


def test_no_shared_memory_is_remarked_on(tmp_path: Path) -> None:
    assert shared_memory_finding(tmp_path / "absent").state == "warn"
    assert "free in" in shared_memory_finding(tmp_path).value
