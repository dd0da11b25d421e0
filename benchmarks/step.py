"""Measures a whole training step of llmkit beside its peers.

Writes tokens/s, MFU, peak memory and loss at named shapes as a Markdown page, and prints it.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import contenders, machine, workloads
from benchmarks.command_line import list_among, progress
from benchmarks.compare import Plan, compare
from benchmarks.table import page
from llmkit.device import choose_device, device_facts
from llmkit.errors import UserError
from llmkit.monitor.hardware import device_peak
from llmkit.plan.precision import choose_precision
from llmkit.precision import torch_dtype


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(arguments)
    device = choose_device()
    chosen_precision = choose_precision(options.precision, device_facts(device))
    precision = chosen_precision.name
    names = options.shapes or list(workloads.ON_GPU if device.type == "cuda" else workloads.ON_CPU)
    options.peers = options.peers or list(contenders.ON_GPU if device.type == "cuda" else contenders.ON_CPU)
    try:
        chosen = [workloads.make_workload(name, device) for name in names]
        options.out.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        print(f"step.py: {error}", file=sys.stderr)
        return 2
    today, device_name = datetime.date.today().isoformat(), machine.device_name(device)
    path = machine.new_file(options.out, f"{today}-step-{machine.slug(device_name)}")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    facts = {
        "device": device_name + threads,
        "versions": machine.versions(),
        "commit": machine.commit(),
        "command": f"`{command_line(names, options, precision)}`",
    }
    dtype = torch_dtype(chosen_precision.compute)
    peak, results, text = device_peak(device, dtype), [], ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        counts = (options.warmup, options.steps, options.rounds)
        plan = Plan(options.peers, *counts, precision, device, Path(caches))
        for work in chosen:
            results.append(compare(work, plan, progress))
            text = page(
                results,
                title=f"Training step, {today}, {device_name}, {precision}",
                facts=facts,
                peak=peak,
                precision=precision,
                device=device,
            )
            path.write_text(text, encoding="utf-8")  # each time anew: a run that is cut off leaves its part
    print(text)
    progress(f"written to {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with code 2 and a message if something in it is wrong."""
    parser = argparse.ArgumentParser(
        prog="step.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    shapes, peers = ", ".join(workloads.NAMES), ", ".join(contenders.NAMES)
    add(
        "--shapes", type=list_among(workloads.NAMES), metavar="A,B",
        help=f"among {shapes} (default: those that suit the device)",
    )  # fmt: skip
    add(
        "--peers", type=list_among(contenders.NAMES), metavar="A,B",
        help=f"contenders, among {peers} (default: those that suit the device)",
    )  # fmt: skip
    add("--steps", type=_at_least_one, default=5, metavar="N", help="timed steps a round (default 5)")
    add("--warmup", type=_at_least_one, default=3, metavar="N", help="steps before the rounds (default 3)")
    add("--rounds", type=_at_least_one, default=5, metavar="N", help="rounds (default 5)")
    add(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="default: bf16 where the device has units for it",
    )  # fmt: skip
    results = workloads.ROOT / "benchmarks" / "results"
    add("--out", type=Path, default=results, metavar="FOLDER", help="where the page goes (default: results/)")
    return parser.parse_args(arguments)


def command_line(names: Sequence[str], options: argparse.Namespace, precision: str) -> str:
    """The command that repeats the measurement, defaults spelt out, without the folder it wrote to."""
    return (
        f"python benchmarks/step.py --shapes {','.join(names)} --peers {','.join(options.peers)} "
        f"--steps {options.steps} --warmup {options.warmup} --rounds {options.rounds} --precision {precision}"
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
