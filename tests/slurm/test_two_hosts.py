"""What goes wrong between hosts: two that want one run folder without locks, and two that cannot connect."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmkit.proc import descendants
from tests.drills.test_stale import ENDLESS, contents, steps
from tests.limits import HANG
from tests.program import events, make_project, recorded
from tests.slurm.cluster import ROOT, Cluster

pytestmark = pytest.mark.exhaustive
NO_LOCKS = ROOT / "tests" / "slurm" / "no_locks"


def train(cluster: Cluster, node: str, folder: Path, locks: str, *overrides: str) -> subprocess.Popen[str]:
    variables = [f"LOCKS={locks}", f"PYTHONPATH={NO_LOCKS}:{ROOT}", "OMP_NUM_THREADS=1"]
    command = f"cd {folder} && exec env {' '.join(variables)} {sys.executable} -m llmkit train tiny.yaml"
    return cluster.start_on(node, "bash", "-c", f"{command} {' '.join(overrides)} 2>&1")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=HANG)
    return process.returncode, output


@pytest.mark.drill(
    "D33",
    injection="a second start on another host where locks fail, or hold for one host; the first stopped",
    expected="refused; 30 s after the first was stopped its run is taken, and it publishes nothing",
)
@pytest.mark.parametrize("locks", ["none", "host"])
def test_one_host_has_the_run_and_a_host_that_stood_still_has_lost_it(
    cluster: Cluster, folder: Path, locks: str
) -> None:
    make_project(folder)
    run = folder / "runs" / "tiny"
    first = train(cluster, "n1", folder, locks, *ENDLESS)
    end = time.monotonic() + HANG
    while not (run / "events.jsonl").exists() or "save" not in events(run):
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.1)
    owner = json.loads((run / "generations" / "00000001" / "owner.json").read_text())
    assert owner["host"] == "n1"

    code, said = ended(train(cluster, "n2", folder, locks))
    assert code == 2 and f"is in use by process {owner['pid']} on n1, started" in said, said
    assert first.poll() is None and "waiting" in said

    cluster.start_on("n1", "kill", "-STOP", str(owner["pid"])).wait(HANG)
    done = steps(run)[-1]
    code, said = ended(train(cluster, "n2", folder, locks, f"train.max_steps={done + 20}"))
    assert code == 0 and "waiting up to 30 s for a sign of life" in said, said
    assert steps(run) == list(range(1, done + 21))
    assert [event["generation"] for event in recorded("start", run) + recorded("resume", run)] == [1, 2]
    before = contents(run)
    for pid in descendants(first.pid):  # nsenter, too, which stops with what it has started
        os.kill(pid, signal.SIGCONT)
    code, said = ended(first)
    assert code == 1 and "taken over by generation 2 (process" in said and " on n2, started" in said, said
    assert contents(run) == before


@pytest.mark.drill(
    "D15",
    injection="no route between two of three hosts",
    expected="every rank ends, and names the pair",
)
def test_hosts_that_cannot_connect_are_named(cluster: Cluster, folder: Path) -> None:
    make_project(folder)
    for node, other in (("n2", "10.77.0.3"), ("n3", "10.77.0.2")):
        assert cluster.start_on(node, "ip", "route", "add", "blackhole", f"{other}/32").wait(HANG) == 0
    ranks = []
    for rank in range(3):
        place = f"RANK={rank} LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 WORLD_SIZE=3 MASTER_ADDR=n1 MASTER_PORT=29555"
        train = f"{sys.executable} -m llmkit train tiny.yaml parallel.timeout_minutes=1"
        command = f"cd {folder} && exec env {place} OMP_NUM_THREADS=1 {train} 2>&1"
        ranks.append(cluster.start_on(f"n{rank + 1}", "bash", "-c", command))
    for process in ranks:
        code, said = ended(process)
        assert code == 1 and "could not join the others" in said and "Traceback" not in said, said
        named = said.partition(" gloo ")[2]
        assert re.search("n[23] cannot connect to n[32]", named) and "n1" not in named, said
