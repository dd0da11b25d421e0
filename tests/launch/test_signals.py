"""Signals to a launcher that dies of them: its processes train on as no orphans, and lose nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

from llmkit.checkpoint.read import open as open_checkpoint
from tests.limits import HANG
from tests.program import environment, make_project, rows


def wait_until(condition, process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None
        time.sleep(0.05)


def test_processes_whose_launcher_has_gone_save_and_end(tmp_path):
    make_project(tmp_path)
    folder = tmp_path / "runs" / "tiny"
    settings = ["train.max_steps=1000000", "checkpoint.every_steps=0", "run.deterministic=false"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher = subprocess.Popen(
        [*command, "-m", "llmkit", "train", "tiny.yaml", *settings],
        cwd=tmp_path, env=environment(), text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    metrics, events = folder / "metrics.jsonl", folder / "events.jsonl"
    wait_until(lambda: metrics.exists() and len(rows(folder)) > 3, launcher)
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.wait(HANG) == -signal.SIGUSR2
    wait_until(lambda: '"stop"' in events.read_text())
    last = json.loads(events.read_text().splitlines()[-1])
    assert last["reason"] == "its launcher has ended"
    assert open_checkpoint(folder).step == last["step"] > 3
