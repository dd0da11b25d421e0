"""Locks that a killed build has left are named once they are old, by the file system's clock."""

from __future__ import annotations

import os
from pathlib import Path

from llmkit.build_locks import OLD
from llmkit.doctor.jit_locks import jit_lock_finding


def test_an_old_lock_is_named_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert jit_lock_finding(environment).state == "ok"
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert jit_lock_finding(environment).state == "ok"
    made = lock.stat().st_mtime - OLD - 60.0
    os.utime(lock, (made, made))
    found = jit_lock_finding(environment)
    assert found.state == "warn" and str(lock) in found.value
