"""`srun llmkit doctor` on the nodes of a real SLURM cluster, of which one is made another than the other."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.program import make_project
from tests.slurm.cluster import FOLDER, Cluster

DOCTOR = (sys.executable, "-m", "llmkit", "doctor")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    if reason := cluster.up():
        pytest.skip(f"no SLURM cluster here: {reason}")
    yield cluster
    cluster.down()


def over(cluster: Cluster, node: str, path: Path, other: Path) -> None:
    """What a node sees at `path` is from now on `other`; other nodes see what they saw."""
    process = cluster.start_on(node, "mount", "--bind", str(other), str(path))
    assert process.wait() == 0


def test_the_odd_node_is_first_in_the_table_with_all_that_is_odd(cluster: Cluster) -> None:
    folder = FOLDER / "doctor"
    shutil.rmtree(folder, ignore_errors=True)
    config = make_project(folder)
    (folder / "other.yaml").write_text(config.read_text().replace("0.01", "0.02"))
    (folder / "other").mkdir()
    (folder / "runs" / "tiny").mkdir(parents=True)
    versions = Path(str(metadata.distribution("torch")._path)) / "METADATA"  # type: ignore[attr-defined]
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    over(cluster, "n2", versions, folder / "METADATA")
    over(cluster, "n2", config, folder / "other.yaml")
    over(cluster, "n2", folder / "runs", folder / "other")
    (folder / "n2.sh").write_text('[ "$SLURM_NODEID" = 0 ] || export NCCL_P2P_DISABLE=1\nexec "$@"\n')
    begun = time.monotonic()
    done = cluster._script(
        "exec", "srun", "--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2", "bash", "n2.sh", *DOCTOR,
        "--json", "--run-folder", "runs/tiny", "--config", "tiny.yaml", folder=folder, OMP_NUM_THREADS="1",
    )  # fmt: skip
    seconds = time.monotonic() - begun
    found: dict[str, Any] = json.loads(done.stdout)
    odd, first = found["nodes"]
    assert (odd["node"], first["node"]) == ("n2", "n1") and found["sick"] == ["n2"]
    states = {each["name"]: (each["state"], each["value"]) for each in odd["findings"]}
    assert states["torch"] == ("fail", f"2.9.0; n1 has {torch.__version__}")
    assert states["config"][0] == states["shared folder"][0] == "fail"
    assert states["environment"][0] == "warn"
    assert states["environment"][1].endswith("; n1 does not have NCCL_P2P_DISABLE=1")
    assert states["reach"] == ("ok", "all of 1 others")
    assert "gloo over 2 processes on 2 nodes" in states["collectives"][1]
    assert seconds > 0 and done.returncode == 1
