"""The benchmark of loading does what it says, for little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.limits import HANG

SCRIPT = Path(__file__).parents[2] / "benchmarks/checkpoint_load.py"


def test_both_formats_are_loaded_by_two_processes() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "2", "2", "1"], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    title, *lines = done.stdout.splitlines()
    assert title == "2 MB, 2 ranks, medians of 1"
    assert [line.split("  ")[0] for line in lines] == [
        "cached: seconds",
        "cached: seconds of processors",
        "from disk: seconds",
        "from disk: seconds of processors",
    ]
    assert all("llmkit" in line and "DCP" in line for line in lines)
