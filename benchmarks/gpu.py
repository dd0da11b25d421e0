"""Measures one GPU: what it can do, each operator, and whole training steps of llmkit beside its peers.

Parts are calls of their own, each of a few minutes. Needs torch; whatever else is missing may lie in a
folder of wheels, and no network is used. Writes a Markdown page under benchmarks/results/, anew with every
row, so that a run that is cut off leaves what it has. --toy runs a part at sizes for a CPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from benchmarks.on_gpu.report import Row
    from benchmarks.on_gpu.setting import Setting

# Nothing but the standard library is imported before the folder of wheels is on the path.

PARTS = (
    "ceilings",
    "attention",
    "kernels",
    "step",
    "zero",
    "recompute",
    "fp8",
    "loss",
    "profile",
    "generate",
)
MINUTES = 8.5


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(arguments)
    try:
        if options.wheels is not None:
            use_wheels(options.wheels)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"gpu.py: --wheels {options.wheels} cannot be used: {error}", file=sys.stderr)
        return 2
    if options.turn is not None:
        return print_turn(options.turn)
    if not options.toy:  # as in training, and so for the peers, too: turns inherit it
        from llmkit.api import let_segments_grow

        let_segments_grow(os.environ)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """One part, from the command line to the page."""
    import torch

    from benchmarks import machine
    from benchmarks.on_gpu.report import Page, clocks
    from benchmarks.on_gpu.steps import PEERS, SHAPES

    if not options.toy and not torch.cuda.is_available():
        print("gpu.py: no GPU is found; --toy runs the parts at sizes for a CPU", file=sys.stderr)
        return 2
    peers = {"llmkit", *(peer for each in PEERS.values() for peer in each)}
    for name, chosen, known in (
        ("--shapes", options.shapes, set(SHAPES)), ("--peers", options.peers, peers)
    ):  # fmt: skip
        if unknown := set(chosen or ()) - known:
            listed = ", ".join(sorted(known))
            print(f"gpu.py: {name}: {sorted(unknown)[0]!r} is not among {listed}", file=sys.stderr)
            return 2
    setting = make_setting(options)
    notes, measure = part(options.part)
    today, device = datetime.date.today().isoformat(), machine.device_name(setting.device)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{today}-gpu-{options.part}-{machine.slug(device)}{'-toy' if options.toy else ''}"
    facts = {
        "device": f"{device}{'; toy sizes, the figures mean nothing' if options.toy else ''}",
        "clocks, power at the beginning": clocks(setting.device) or "not known",
        "versions": machine.versions(),
        "commit": machine.commit(),
        "command": f"`python benchmarks/gpu.py {' '.join(command_line(options))}`",
    }
    path = machine.new_file(options.out, stem)
    title = f"GPU: {options.part}, {today}, {device}, {setting.precision}"
    page = Page(path, title, facts, notes)
    for row in page.fill(measure(setting)):
        print(
            f"{row.table}: {', '.join(f'{key} {cell}' for key, cell in row.cells.items() if cell)}",
            flush=True,
        )
    print(f"written to {path}", file=sys.stderr)
    return 0


def part(name: str) -> tuple[Sequence[str], Callable[[Setting], Iterator[Row]]]:
    """The notes of a part, and the part."""
    from benchmarks.on_gpu import attention, ceilings, generation, kernels, profiling, steps

    return {
        "ceilings": (ceilings.NOTES, ceilings.measure),
        "attention": (attention.NOTES, attention.measure),
        "kernels": (kernels.NOTES, kernels.measure),
        "step": (steps.NOTES, steps.step),
        "zero": (steps.NOTES, steps.zero),
        "recompute": (steps.NOTES, steps.recompute),
        "fp8": (steps.NOTES, steps.fp8),
        "loss": (steps.LOSS_NOTES, steps.loss),
        "profile": (profiling.NOTES, profiling.measure),
        "generate": (generation.NOTES, generation.measure),
    }[name]


def make_setting(options: argparse.Namespace) -> Setting:
    """What the parts are told."""
    import torch

    from benchmarks.on_gpu.roofline import rates_of
    from benchmarks.on_gpu.setting import Setting
    from llmkit.device import choose_device
    from llmkit.monitor.hardware import device_peak

    device = torch.device("cpu") if options.toy else choose_device()
    return Setting(
        device=device,
        toy=options.toy,
        ends=time.monotonic() + 60 * options.minutes,
        rates=None if options.toy else rates_of(torch.cuda.get_device_name(device)),
        peak=None if options.toy else device_peak(device, torch.bfloat16)[0],
        precision=options.precision or ("fp32" if options.toy else "bf16"),
        rounds=options.rounds,
        seconds=0.0 if options.toy else options.seconds,
        shapes=options.shapes or (),
        peers=options.peers or (),
        isolated=not options.toy,
        wheels=options.wheels,
        note=lambda text: print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True),
    )


def print_turn(task: str) -> int:
    """What a process of its own does: one turn, whose outcome is its last line."""
    import dataclasses
    import json

    from benchmarks.on_gpu.turn import Task, measure
    from llmkit.device import choose_device

    print(json.dumps(dataclasses.asdict(measure(Task(**json.loads(task)), choose_device()))))
    return 0


def use_wheels(folder: Path) -> None:
    """Puts a folder's packages behind those that are installed: unpacked ones, or wheels, unpacked once.

    Without a network and without dependencies: what is installed already, torch above all, stays in use.
    """
    wheels = sorted(folder.resolve(strict=True).glob("*.whl"))
    packages = folder.resolve() / "unpacked" if wheels else folder.resolve()
    if wheels and not packages.exists():
        command: list[Any] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", packages, *wheels], check=True)
    sys.path.append(str(packages))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with code 2 and a message if something in it is wrong."""
    parser = argparse.ArgumentParser(
        prog="gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--part", choices=PARTS, default="ceilings", help="what is measured (default: ceilings)")
    add("--shapes", type=_names, metavar="A,B", help="of whole steps (parts step and profile)")
    add(
        "--peers",
        type=_names,
        metavar="A,B",
        help="beside llmkit (part step; default: all that suit the shape)",
    )
    add("--toy", action="store_true", help="sizes for a CPU, which show that all runs, and nothing else")
    add("--minutes", type=float, default=MINUTES, help=f"nothing new begins after these (default {MINUTES})")
    add("--seconds", type=float, default=10.0, help="of timed steps a turn (default 10)")
    add("--rounds", type=int, default=7, help="of each operator (default 7)")
    add("--precision", choices=("bf16", "fp32"), help="default: bf16")
    add("--wheels", type=Path, metavar="FOLDER", help="packages that are not installed: wheels, or unpacked")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    add("--turn", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def command_line(options: argparse.Namespace) -> list[str]:
    """What repeats the measurement, without folders of this machine."""
    words = ["--part", options.part]
    for name in ("shapes", "peers"):
        if chosen := getattr(options, name):
            words += [f"--{name}", ",".join(chosen)]
    words += ["--minutes", f"{options.minutes:g}", "--seconds", f"{options.seconds:g}"]
    words += ["--rounds", str(options.rounds)]
    return words + ["--toy"] * options.toy


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
