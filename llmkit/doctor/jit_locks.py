"""Locks of builds of extensions that were killed: the next build waits for them in silence."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmkit.doctor.findings import Finding

OLD = 600.0
"""Seconds after which a build has ended, one way or another."""


def jit_lock_finding(environment: Mapping[str, str]) -> Finding:
    """Of PyTorch's and DeepSpeed's C++ extensions. Triton and Inductor keep none: the system ends theirs."""
    folder = extensions_folder(environment)
    old = [str(path) for path, age in lock_ages(folder) if age > OLD]
    if old:
        value = f"left by a build that was killed: {', '.join(old)}"
        return Finding(
            "build locks", "warn", value, "remove these files when no process builds: starts wait for them"
        )
    return Finding("build locks", "ok", f"no old ones in {folder}")


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Where PyTorch builds extensions."""
    if asked := environment.get("TORCH_EXTENSIONS_DIR"):
        return Path(asked)
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "torch_extensions"


def lock_ages(folder: Path) -> list[tuple[Path, float]]:
    """The locks, and how many seconds ago each was made by the clock of its file system."""
    locks = sorted({*folder.glob("*/lock"), *folder.glob("*/*/lock")})
    if not locks:
        return []
    try:
        with tempfile.TemporaryFile(dir=folder) as now:
            os.utime(now.fileno())
            moment = os.fstat(now.fileno()).st_mtime
        return [(lock, moment - lock.stat().st_mtime) for lock in locks]
    except OSError:  # not ours to write, or just removed
        return []
