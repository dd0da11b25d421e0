"""The benchmark of monitoring: its table, and a run of a toy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.monitor import VARIANTS, Block, helpers_seconds, lines, main
from tests.limits import HANG


def test_the_table_has_medians_and_what_each_variant_adds() -> None:
    off = [Block(0.100, 0.0, 0.001), Block(0.110, 0.001, 0.001), Block(0.200, 0.002, 0.002)]
    rows = [Block(0.101, 0.0, 0.002), Block(0.121, 0.003, 0.003), Block(0.300, 0.004, 0.004)]
    *_, first, second = lines({VARIANTS[0].name: off, "rows": rows})
    assert first == "| off | 110.000 | +0.00 % | 1.000 | 1.000 | 0.91 % |"
    assert second == "| rows | 121.000 | +10.00 % | 3.000 | 3.000 | 2.73 % |"


def test_helpers_are_all_processes_below() -> None:
    busy = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); sys.stdin.read()"
    before = helpers_seconds(os.getpid())
    shell = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, busy]  # a process below a process
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        spent = helpers_seconds(os.getpid()) - before
        process.communicate(timeout=HANG)
    assert spent > 0.25


def test_a_toy_run_measures_every_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "--shapes",
        "toy",
        "--steps",
        "2",
        "--rounds",
        "2",
        "--wandb",
        "disabled",
        "--out",
        str(tmp_path),
    ]
    assert main(asked) == 0
    (page,) = tmp_path.iterdir()
    text = page.read_text()
    assert text in capsys.readouterr().out and "## toy, 2 x 16 tokens a step" in text
    found = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in text.splitlines()}
    for variant in VARIANTS:
        assert float(found[variant.name][1]) > 0.0
    calls = {variant.name: float(found[variant.name][4]) for variant in VARIANTS}
    assert calls["rows every step"] > calls["off"] > 0.0
