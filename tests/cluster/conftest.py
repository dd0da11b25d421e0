"""Fixtures: SLURM's programs without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.programs import Programs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Programs that are found first on the PATH; there are no accounts of jobs."""
    found = Programs(tmp_path / "bin")
    found.say("sacct", errors="Slurm accounting storage is disabled\n", code=1)
    monkeypatch.setenv("PATH", found.path)
    return found
