"""`llmkit doctor` on nodes of a real SLURM cluster, of which one is made another than the others."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.program import make_project
from tests.slurm.cluster import FOLDER, Cluster

DOCTOR = (sys.executable, "-m", "llmkit", "doctor")
AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600.0\n"
ON_N2 = """\
if [ "$SLURMD_NODENAME" = n2 ]; then export NCCL_P2P_DISABLE=1 PYTHONPATH=$PWD/ahead:$PYTHONPATH; fi
exec "$@"
"""


class Site(NamedTuple):
    """Nodes of which n2 has other versions, settings, variables, another run folder and another clock."""

    cluster: Cluster
    folder: Path

    def srun(self, nodes: int, *arguments: str) -> tuple[int, str]:
        """`llmkit doctor` on each of the first nodes: exit code and output."""
        done = self.cluster.ask(
            "srun", f"--nodes={nodes}", "--ntasks-per-node=1", f"--nodelist=n[1-{nodes}]", "bash", "on-n2.sh",
            *DOCTOR, *arguments, "--run-folder", "runs/tiny", "--config", "tiny.yaml", "--seconds", "600",
            folder=self.folder,
        )  # fmt: skip
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    cluster = Cluster()
    if reason := cluster.up():
        pytest.skip(f"no SLURM cluster here: {reason}")
    folder = FOLDER / "doctor"
    shutil.rmtree(folder, ignore_errors=True)
    config = make_project(folder)
    for name in ("runs/tiny", "other", "ahead"):
        (folder / name).mkdir(parents=True)
    (folder / "other.yaml").write_text(config.read_text().replace("0.01", "0.02"))
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    (folder / "ahead" / "sitecustomize.py").write_text(AHEAD)
    (folder / "on-n2.sh").write_text(ON_N2)
    versions = metadata.distribution("torch").locate_file(f"torch-{torch.__version__}.dist-info/METADATA")
    for instead, seen in (("METADATA", versions), ("other.yaml", config), ("other", folder / "runs")):
        process = cluster.start_on("n2", "mount", "--bind", str(folder / instead), str(seen))
        assert process.wait() == 0
    yield Site(cluster, folder)
    cluster.down()


@pytest.mark.drill(
    "D40",
    injection="one of two nodes has another PyTorch, configuration, run folder, environment and clock",
    expected="the check before a job names it, with all that is odd",
)
def test_the_odd_node_is_named_before_a_job_starts(site: Site, measured: Callable[..., None]) -> None:
    begun = time.monotonic()
    assert site.srun(2, "--node", "--into", "found") == (0, "")
    checked = time.monotonic()
    done = site.cluster.ask(*DOCTOR, "--table", "found", "--nodes", "2", folder=site.folder)
    measured("check of the nodes", checked - begun, "s")
    measured("table", time.monotonic() - checked, "s")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["n2", "n1"] and lines[-1] == "sick: n2"
    assert f"FAIL  torch           2.9.0; n1 has {torch.__version__}" in lines
    for name in ("config", "shared folder"):
        assert any(line.startswith(f"FAIL  {name} ") for line in lines), name
    assert any(line.startswith("warn  environment") and "NCCL_P2P_DISABLE=1" in line for line in lines)
    assert list((site.folder / "runs" / "tiny").iterdir()) == []


@pytest.mark.drill(
    "D15",
    injection="no route between two of three nodes",
    expected="the pair is named, and the node without which the others reach each other",
)
@pytest.mark.drill("D34", injection="the clock of one node is an hour ahead", expected="it is named")
def test_nodes_are_checked_together(site: Site, measured: Callable[..., None]) -> None:
    assert site.cluster.start_on("n2", "ip", "route", "add", "blackhole", "10.77.0.3").wait() == 0
    begun = time.monotonic()
    code, output = site.srun(3, "--json")
    measured("all nodes", time.monotonic() - begun, "s")
    found: dict[str, Any] = json.loads(output)
    assert code == 1 and found["sick"] == ["n2", "n3"]
    states = {
        node["node"]: {each["name"]: (each["state"], each["value"]) for each in node["findings"]}
        for node in found["nodes"]
    }
    assert states["n3"]["reach"] == ("fail", "no connection with n2")
    assert states["n2"]["reach"] == ("warn", "no connection with n3")
    assert states["n1"]["reach"] == ("ok", "all of 2 others")
    assert states["n2"]["clocks"][0] == "warn" and states["n2"]["clocks"][1].startswith("+3")
    assert states["n1"]["clocks"][0] == states["n3"]["clocks"][0] == "ok"
    assert "gloo over 2 processes on 2 nodes" in states["n2"]["collectives"][1]
    assert "collectives" not in states["n3"]
    assert states["n3"]["locks of nodes"] == ("ok", "a lock of n1 keeps it out")
    assert states["n2"]["torch"][0] == states["n2"]["config"][0] == "fail"
