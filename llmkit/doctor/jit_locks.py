"""Locks of builds of extensions that were killed: the next build waits for them in silence."""

from __future__ import annotations

from collections.abc import Mapping

from llmkit.build_locks import OLD, extensions_folder, lock_ages
from llmkit.doctor.findings import Finding


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
