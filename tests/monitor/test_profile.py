"""Recordings of PyTorch's profiler: large products are compute-bound, small ones are not."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from llmkit.monitor.bottleneck import Bottleneck
from llmkit.monitor.profile import Recording
from tests.limits import HANG


def recorded(base: Path, size: int, times: int) -> Bottleneck:
    """Products of two (size, size) matrices."""
    matrix = torch.ones(size, size)
    torch.mm(matrix, matrix)
    recording = Recording(torch.device("cpu"))
    for _ in range(times):
        torch.mm(matrix, matrix).relu_()
    recording.stop()
    return recording.write(base, 0.0, 1, flops=2.0 * size**3 * times)


def test_large_products_bound_a_step_and_the_files_say_so(tmp_path: Path) -> None:
    base = tmp_path / "profile" / "step-5-rank-0"
    found = recorded(base, 512, 10)
    assert found.bound == "compute" and found.operators[0].name == "aten::mm"
    assert found.operators[0].calls == 10
    assert {path.name.removeprefix(base.name) for path in base.parent.iterdir()} == {
        ".json.gz", ".txt", ".summary.json",
    }  # fmt: skip
    trace = json.loads(gzip.decompress(base.with_name(f"{base.name}.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 10
    summary = json.loads(base.with_name(f"{base.name}.summary.json").read_text())
    assert summary["verdict"] == found.line() and summary["operators"][0]["kind"] == "matrix"
    lines = base.with_name(f"{base.name}.txt").read_text().splitlines()
    assert lines[0] == found.line() and lines[3].endswith("matrix      aten::mm")


def test_tiny_products_pay_for_their_calls(tmp_path: Path) -> None:
    found = (recorded(tmp_path / "small", 2, 300).bound for _ in range(20))
    assert "launch" in found  # a busy machine interrupts an operator now and then, which looks long


def test_a_recording_prints_nothing() -> None:
    """Kineto, which writes to the terminal itself, reads its level once in a process."""
    code = (
        "import torch; from llmkit.monitor.profile import Recording; "
        "recording = Recording(torch.device('cpu')); torch.ones(2).sum(); recording.stop()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, env=environment,
        cwd=Path(__file__).parents[2], check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
