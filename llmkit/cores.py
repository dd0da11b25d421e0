"""What this process may use of the machine."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_MOST_FILES = 2**16
"""More are never needed, and some programs look at every number up to the limit."""
_MALLOC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def raise_open_files() -> None:
    """Lets this process, and those that it starts, open as many files as the system allows it.

    The limit that a shell gives, often 1024 and at times 256, is a default: `ulimit -n` could raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def keep_freed_memory() -> bool:
    """Lets glibc's malloc keep memory that is freed, for the next tensors of this process; whether it does.

    By default it goes back to the system and comes again page by page, each page a fault and filled with
    zeros: 4 to 6 % of a training step on a CPU, 3 % more where gradients or logits are larger than the 32 MiB
    up to which a threshold can keep them. So no block gets a mapping of its own. What the user has set in the
    environment holds. Other allocators (a preloaded one, other systems' own) are left as they are.
    """
    tuned = "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or any(name in os.environ for name in _MALLOC_SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return mallopt(_M_MMAP_MAX, 0) == 1 == mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory, swap included, that this process may use; None where the system does not say.

    A container or a job is held to the limit of its control group.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        sizes = {
            name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
        }
        limits = [limit for file in _limits(proc, groups) if (limit := _number(file)) is not None]
        return min([sizes["MemTotal"], *limits]) + sizes.get("SwapTotal", 0)
    except (OSError, ValueError, KeyError, IndexError):
        return None


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory, without swap, that are free now for this process; None where the system does not say.

    What the control groups of this process have taken counts against their limits, but for the page cache.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limits = [(_number(file), file.parent) for file in _limits(proc, groups)]
        left = [limit - _taken(group) for limit, group in limits if limit is not None]
        return max(0, min([available, *left]))
    except (OSError, ValueError, KeyError, IndexError, StopIteration):
        return None


def _taken(group: Path) -> int:
    """Bytes that a control group, of version 1 or 2, has taken, without files in the page cache."""
    used = _number(group / "memory.current")
    if used is None:
        used = _number(group / "memory.usage_in_bytes")
    if used is None:
        return 0
    counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return used - int(counted.get("total_inactive_file", counted.get("inactive_file", 0)))


def _limits(proc: Path, groups: Path) -> Iterator[Path]:
    """The files with the limits of the control groups, of version 1 or 2, that this process is in."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        own = root / path.lstrip("/")
        yield from (folder / name for folder in (own, *own.parents) if folder.is_relative_to(root))


def _number(file: Path) -> int | None:
    """The number in a file; None if there is none, as where "max" stands for no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
