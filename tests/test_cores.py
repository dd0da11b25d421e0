from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cores import available_cores, free_memory, host_memory, raise_open_files


def test_where_no_cores_are_assigned_all_of_the_machine_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert available_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


GIB = 2**30


def machine(folder: Path, groups: str) -> int | None:
    """The memory of a machine with 8 GiB and 1 GiB of swap, as its files tell."""
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: {8 * 2**20} kB\nMemFree: 5 kB\nSwapTotal: {2**20} kB\n")
    (folder / "self" / "cgroup").write_text(groups)
    return host_memory(folder, folder / "groups")


def test_memory_is_that_of_the_machine_with_its_swap(tmp_path):
    assert machine(tmp_path, "0::/\n") == 9 * GIB


@pytest.mark.parametrize(
    ("groups", "file", "text", "expected"),
    [
        ("0::/job/step\n", "job/step/memory.max", f"{2 * GIB}\n", 3 * GIB),
        ("0::/job/step\n", "job/memory.max", f"{2 * GIB}\n", 3 * GIB),
        ("0::/job/step\n", "job/memory.max", "max\n", 9 * GIB),
        ("3:cpu:/\n4:cpu,memory:/job\n0::/\n", "memory/job/memory.limit_in_bytes", f"{2 * GIB}\n", 3 * GIB),
        ("4:memory:/job\n", "memory/job/memory.limit_in_bytes", "9223372036854771712\n", 9 * GIB),
        ("0::/../..\n", "memory.max", "max\n", 9 * GIB),
    ],
)  # fmt: skip
def test_a_control_group_holds_a_job_to_less(tmp_path, groups, file, text, expected):
    (tmp_path / "groups" / file).parent.mkdir(parents=True)
    (tmp_path / "groups" / file).write_text(text)
    assert machine(tmp_path, groups) == expected


def test_a_system_that_does_not_tell_has_no_known_memory(tmp_path):
    assert host_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 5 * GIB),
        ("0::/job\n", {"memory.max": f"{4 * GIB}", "memory.current": f"{3 * GIB}", "memory.stat":
            f"anon 5\ninactive_file {2 * GIB}"}, 3 * GIB),
        ("0::/job\n", {"memory.max": "max", "memory.current": f"{3 * GIB}"}, 5 * GIB),
        ("0::/job\n", {"memory.max": f"{GIB}", "memory.current": f"{GIB + 4096}", "memory.stat": ""}, 0),
        ("4:memory:/job\n", {"memory.limit_in_bytes": f"{4 * GIB}", "memory.usage_in_bytes": f"{3 * GIB}",
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}"}, 2 * GIB),
    ],
)  # fmt: skip
def test_what_a_control_group_has_taken_is_not_free_but_for_the_page_cache(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    folder = tmp_path / "groups" / ("job" if groups.startswith("0") else "memory/job")
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n" if text else "")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(groups)
    (tmp_path / "meminfo").write_text(f"MemTotal: {8 * 2**20} kB\nMemAvailable: {5 * 2**20} kB\n")
    assert free_memory(tmp_path, tmp_path / "groups") == expected
    assert free_memory(tmp_path / "nowhere") is None


FAULTS = """
import ctypes, resource
from llmkit.cores import keep_freed_memory
kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def use():
    blocks = {libc.malloc(size): size for size in (2**24, 2**26, 3 * 2**24, 5000)}
    for block, size in blocks.items():
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_freed_memory_is_used_again_without_page_faults_unless_the_user_has_set_malloc() -> None:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    environment.pop("GLIBC_TUNABLES", None)

    def outcome(**settings: str) -> tuple[str, int]:
        command = [sys.executable, "-c", FAULTS]
        done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
        kept, faults = done.stdout.split()
        return kept, int(faults)

    kept, faults = outcome()
    assert kept == "True" and faults < 1000  # of 4 x 32,768 pages
    kept, faults = outcome(MALLOC_TRIM_THRESHOLD_="1048576")
    assert kept == "False" and faults > 1000


def test_a_process_may_open_as_many_files_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        raise_open_files()
        raised, kept = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
        assert (raised, kept) == (most, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
