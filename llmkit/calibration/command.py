"""`llmkit doctor --calibrate`: measures this machine's CPU, and keeps what it found in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from llmkit.calibration.steps import SAMPLES, calibrate_mode, plan_of
from llmkit.cores import available_cores, keep_freed_memory
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.estimate.calibration import Calibration, CpuRates, calibration_file, mode_of, this_machine
from llmkit.plan import DeviceFacts

Mode = tuple[str, bool]
"""A precision, and whether modules are compiled."""


def calibrate_command(
    file: str,
    full: bool,
    environment: Mapping[str, str],
    calibrate: Callable[[str, bool], CpuRates] | None = None,
) -> int:
    """Measures, writes and prints; returns the exit code.

    file: where to write; "" = this user's folder, where runs and `llmkit plan` look. full: all modes, not
    only those that a run takes where nothing is asked for. calibrate: measures one mode.
    """
    keep_freed_memory()  # as training does
    device, threads = torch.device("cpu"), torch.get_num_threads()
    machine = this_machine(available_cores())
    path = Path(file) if file else calibration_file(machine, threads, environment)
    _require_writable(path)
    print(f"measuring the CPU of {machine}, {threads} threads; it takes about a minute a mode", flush=True)
    modes, measure, began = {}, calibrate or _calibrate, time.monotonic()
    for precision, compiled in _modes(device_facts(device, compiled=True), full):
        rates = modes[mode_of(precision, compiled)] = measure(precision, compiled)
        print(describe(mode_of(precision, compiled), rates), flush=True)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    Calibration(machine, threads, str(torch.__version__), today, modes).write(path)
    print(f"written to {path} ({time.monotonic() - began:.0f} s)")
    return 0


def _require_writable(path: Path) -> None:
    """Raises UserError now, not after minutes, where the file could not be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"doctor: --calibrate cannot write {path}; name a file in a folder of your own")
    except OSError as error:
        raise UserError(f"doctor: --calibrate cannot write {path}: {error.strerror}") from error


def _modes(facts: DeviceFacts, full: bool) -> list[Mode]:
    """Those to measure: of the precision that runs take here, or all."""
    precisions = ["bf16", "fp32"] if facts.has_bf16_units else ["fp32"]
    ways = [False] if facts.compiler_missing else [True, False]
    usual = plan_of(SAMPLES[0], "auto", facts, ways[0]).precision.name
    return [(name, way) for name in precisions for way in ways if full or name == usual]


def _calibrate(precision: str, compiled: bool) -> CpuRates:
    return calibrate_mode(precision, device_facts(torch.device("cpu"), compiled), compiled)


def describe(mode: str, rates: CpuRates) -> str:
    """One line."""
    largest = max(2.0 * row[0] * row[1] * row[2] / row[3] for row in rates.products)
    attention = max(1.0 / row[2] for row in rates.attentions)
    return (
        f"{mode}: products {largest / 1e9:.0f}, attention {attention / 1e9:.0f} GFLOP/s; "
        f"{rates.logit * 1e9:.2f} ns a logit, {rates.parameter * 1e9:.2f} ns a parameter updated, "
        f"{rates.kernel * 1e6:.0f} us an operator"
    )
