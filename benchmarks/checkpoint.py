"""Saves and loads of one process's state by llmkit, torch and DeepSpeed, in turns; and a run that saves.

Of each save: how long training would wait (stall) and when all is on disk or handed to the kernel (save), by
the wall, and the processor time of all threads; then a load into memory that is there. Files are read from
the page cache. Usage: checkpoint.py [--sizes 0.1 1] [--rounds 2] [--folder DIR] [--steps 151] [--out DIR]
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import machine
from benchmarks.checkpoint_contenders import CONTENDERS, Contender, State
from benchmarks.workloads import ROOT

EVERY = 50
"""Steps between the saves of the run."""


class Turn(NamedTuple):
    """Seconds of one save and load: by the wall, and processor time (of the stall that of the thread that
    waits, else of all threads); bytes: on disk."""

    stall: float
    stall_cpu: float
    save: float
    save_cpu: float
    load: float
    load_cpu: float
    bytes: int


def turn(contender: Contender, folder: Path) -> Turn:
    """One save, and the load of what it has written, which must be the state."""
    gc.collect()
    os.sync()  # what others have left to be written is not this one's
    began, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    finish = contender.begin(folder)
    stall, stall_cpu = time.perf_counter() - began, time.thread_time() - own
    finish()
    save, save_cpu = time.perf_counter() - began, time.process_time() - cpu
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    kept = [tensor.clone() for tensor in contender.tensors()]
    for tensor in contender.tensors():
        tensor.zero_()
    began, cpu = time.perf_counter(), time.process_time()
    contender.load(folder)
    load, load_cpu = time.perf_counter() - began, time.process_time() - cpu
    assert all(map(torch.equal, contender.tensors(), kept)), contender
    return Turn(stall, stall_cpu, save, save_cpu, load, load_cpu, size)


def compare(names: Sequence[str], gigabytes: float, rounds: int, folder: Path) -> dict[str, list[Turn]]:
    """The turns of each contender. The first round, in which memory is new, comes before the others."""
    state = State(gigabytes)
    contenders = [(name, CONTENDERS[name](state)) for name in names]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(1 + rounds):
        first = number % len(contenders)  # each has another before it in each round
        for index, (name, contender) in enumerate([*contenders[first:], *contenders[:first]]):
            place = folder / f"{index}-{number}"
            place.mkdir()
            turns[name].append(turn(contender, place))
            shutil.rmtree(place)
            print(f"{gigabytes:g} GB, round {number}: {name}: {turns[name][-1]}", flush=True)
    return turns


def lines(turns: dict[str, list[Turn]], gigabytes: float) -> list[str]:
    """A table: medians of the rounds after the first; stalls of the first beside them."""
    rows = []
    for name, found in turns.items():
        middle = [statistics.median(values) for values in zip(*found[1:], strict=True)]
        stall, stall_cpu, save, save_cpu, load, load_cpu, size = middle
        rows.append(
            [name, f"{found[0].stall:.3f}", f"{stall:.3f}", f"{stall_cpu:.3f}",
             f"{save:.2f}", f"{save_cpu:.2f}", f"{load:.2f}", f"{load_cpu:.2f}", f"{size / 1e9:.3f}"]
        )  # fmt: skip
    head = ["contender", "first stall", "stall", "stall, CPU", "save", "save, CPU", "load", "load, CPU", "GB"]
    return [f"## {gigabytes:g} GB of state, one process; seconds", "", *table(head, rows)]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; numbers to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def of_a_run(steps: int, folder: Path) -> list[str]:
    """How long training waits for saves each `EVERY` steps, in a run of the demo model."""
    from llmkit.api import load
    from llmkit.loop.resume import Options
    from llmkit.train import train

    overrides = [
        f"run.dir={folder}", "train.max_minutes=null", f"train.max_steps={steps}", "monitor.report=false",
        f"checkpoint.every_steps={EVERY}", "checkpoint.every_minutes=0", "checkpoint.background=true",
        "evaluate.every_steps=0", "monitor.sample=null", "monitor.wandb.mode=disabled",
    ]  # fmt: skip
    loaded = load(str(ROOT / "configs/demo.yaml"), overrides)
    with redirect_stdout(sys.stderr):
        train(loaded, Options(), started=time.monotonic(), environment={})
    events = [json.loads(line) for line in (folder / "demo/events.jsonl").read_text().splitlines()]
    saves = [event for event in events if event["event"] == "save" and event["step"] % EVERY == 0]
    rows = [json.loads(line) for line in (folder / "demo/metrics.jsonl").read_text().splitlines()]
    training = statistics.median(row["step_seconds"] for row in rows if row.get("step_seconds")) * EVERY
    body = [
        [str(save["step"]), f"{1e3 * save['stall_seconds']:.1f}", f"{1e3 * save['seconds']:.0f}",
         f"{100 * save['stall_seconds'] / (training + save['stall_seconds']):.3f} %"]
        for save in saves
    ]  # fmt: skip
    head = ["step", "stall, ms", "save, ms", f"share of {EVERY} steps"]
    return [f"## configs/demo.yaml, a save each {EVERY} steps ({training:.1f} s)", "", *table(head, body)]


def main(arguments: Sequence[str]) -> None:
    """Measures, and writes a file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.1, 1.0], help="GB of state")
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=2, help="after a first one")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; default: a temporary one")
    parser.add_argument("--steps", type=int, default=151, help="of the run; 0 = none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    text = [f"llmkit and peers in turns, {options.rounds} rounds after a first; {options.threads} threads"]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for size in options.sizes:
            text += ["", *lines(compare(options.contenders, size, options.rounds, Path(name)), size)]
        if options.steps:
            text += ["", *of_a_run(options.steps, Path(name))]
    today, processor = datetime.date.today().isoformat(), machine.device_name(torch.device("cpu"))
    head = [f"# Checkpoints, {today}, {processor}", ""]
    head += [f"{machine.versions()}; commit {machine.commit()}", ""]
    options.out.mkdir(parents=True, exist_ok=True)
    path = machine.new_file(options.out, f"{today}-checkpoint-{machine.slug(processor)}")
    path.write_text("\n".join([*head, *text, ""]), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])
