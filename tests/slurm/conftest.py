"""A SLURM cluster for the tests of a file, and a folder for the job of a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import FOLDER, Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of four nodes; skips where this machine cannot have one."""
    cluster = Cluster()
    if reason := cluster.up():
        pytest.skip(f"no SLURM cluster here: {reason}")
    yield cluster
    cluster.down()


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    """A folder that all nodes see, empty, for the job of this test."""
    path = FOLDER / request.node.name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
