"""A link between two hosts of a run that fails: for a while, and for good."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.program import make_project, recorded, rows
from tests.slurm.cluster import ROOT, Cluster

pytestmark = pytest.mark.exhaustive
OUTAGE = 5.0


def train(cluster: Cluster, rank: int, folder: Path) -> subprocess.Popen[str]:
    """One of two hosts, by torchrun."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank),
        "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29533", "-m", "llmkit",
        "train", "tiny.yaml", "run.deterministic=false", "faults.watchdog=true", "train.max_steps=100000",
        "checkpoint.every_steps=200",
    ]  # fmt: skip
    inside = f"cd {folder} && exec env PYTHONPATH={ROOT} OMP_NUM_THREADS=1 {' '.join(command)} 2>&1"
    return cluster.start_on(f"n{rank + 1}", "bash", "-c", inside)


def link(cluster: Cluster, state: str) -> None:
    assert cluster.start_on("n2", "ip", "link", "set", "eth0", state).wait(HANG) == 0


def steps_after(run: Path, step: int) -> None:
    """Waits until the run has done more steps than that."""
    end = time.monotonic() + HANG
    while not (run / "metrics.jsonl").exists() or rows(run)[-1]["step"] <= step:
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.drill(
    "D14", injection="the link of one of two hosts is down for 5 s", expected="the run goes on after it"
)
@pytest.mark.drill(
    "D15",
    injection="the link of one of two hosts is down for good",
    expected="each host names the other, and ends its rank",
)
def test_a_link_that_fails_for_a_while_is_survived_and_one_that_fails_for_good_is_named(
    cluster: Cluster, folder: Path, measured: Callable[[str, float | str, str], None]
) -> None:
    make_project(folder)
    run = folder / "runs" / "tiny"
    hosts = [train(cluster, rank, folder) for rank in range(2)]
    steps_after(run, 20)
    link(cluster, "down")
    time.sleep(OUTAGE)
    link(cluster, "up")
    last = rows(run)[-1]["step"]
    begun = time.monotonic()
    steps_after(run, last + 5)
    measured("next steps after the outage", time.monotonic() - begun, "s")
    assert not recorded("hung_rank", run)

    cut = time.time()
    link(cluster, "down")
    outputs = [host.communicate(timeout=HANG)[0] for host in hosts]
    link(cluster, "up")
    assert all(host.returncode != 0 for host in hosts)
    events = recorded("hung_rank", run)
    assert sorted(event["ranks"] for event in events) == [[0], [1]]
    for event in events:
        measured("named after", datetime.fromisoformat(event["time"]).timestamp() - cut, "s")
        assert f"rank {event['rank']} (n{event['rank'] + 1}" in event["reason"]
        assert "was not heard for" in event["reason"]
        assert event["reason"] in outputs[1 - event["rank"]]
