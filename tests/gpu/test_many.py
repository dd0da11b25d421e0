"""What several GPUs can show (the CPU runs the same on as many processes), and parity on any number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.limits import HANG
from tests.ranks import run_ranks

GPUS = torch.cuda.device_count()
SEVERAL = pytest.mark.skipif(torch.cuda.is_available() and GPUS < 2, reason="needs two GPUs")


@SEVERAL
def test_zero_2_keeps_a_gradient_until_its_late_reduction_has_read_it(device: torch.device) -> None:
    """One larger than a bucket is read in place by a side stream: its memory must not be taken before."""
    cases = "tests.gpu.rank_cases:train"
    late = run_ranks(2, cases, joined=False, stage=2, delayed=True)
    native = run_ranks(2, cases, joined=False, stage=0, delayed=False)

    assert late[0]["late"] > 10
    assert late[0]["losses"] == late[1]["losses"]
    assert late[0]["losses"] == pytest.approx(native[0]["losses"], rel=2e-3)
    assert late[0]["norms"] == pytest.approx(native[0]["norms"], rel=2e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("count", [n for n in (1, 2, 4, 8) if n <= max(GPUS, 1)])
def test_all_layouts_train_alike_on_gpus(count: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command = [sys.executable, *(launcher if count > 1 else []), "-m", "llmkit", "doctor", "--parity"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout + done.stderr
