"""Compares recipes by what they learn: bits per byte at equal tokens and at equal processor seconds.

llmkit's recipe (configs/demo.yaml, at other sizes that of `llmkit new`) beside nanoGPT's, transformers' Llama
at its defaults and nanochat's, each with the learning rates that a sweep finds best. This takes hours. It can
be stopped at any time: the same command goes on. Two processes may work in one folder, one for each core.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch._dynamo

from benchmarks import learning_contenders, learning_sizes, machine
from benchmarks.command_line import list_among, progress
from benchmarks.learning_contenders import NAMES, OURS, Task
from benchmarks.learning_page import page
from benchmarks.learning_run import CPU, Result, measure_steps, train
from benchmarks.learning_sizes import SIZES, Size, Text
from benchmarks.learning_store import KINDS, Findings, Job, Line, Store, digest
from benchmarks.timing import reason
from llmkit.cores import keep_freed_memory
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.kernels.compiler import compiler_missing
from llmkit.plan.precision import choose_precision

WAIT_SECONDS = 5.0
"""Until it is looked again, where what is left is being made by another process or waits for that."""

RECOMPILE_LIMIT = 64


class Judge:
    """Makes the runs that are wanted, one after the other, and keeps the page up to date."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.store = Store(options.folder)
        self.sizes = [learning_sizes.find(name) for name in options.sizes]
        self.texts: dict[str, Text] = {}
        self.commit = machine.commit()  # of the code that runs, whatever becomes of the checkout meanwhile
        precision = choose_precision(options.precision, device_facts(CPU)).name
        self.conditions = {
            "device": machine.device_name(CPU), "precision": precision, "threads": options.threads,
            "torch": torch.__version__,
        }  # fmt: skip
        recipes = {(size.name, name): self._recipe(size, name) for size in self.sizes for name in NAMES}
        for size, name in options.begin_anew:
            self.store.begin_anew(size, name)
        for (size, name), recipe in recipes.items():
            self.store.check(size, name, recipe)
        self.digests = {key: digest(recipe) for key, recipe in recipes.items()}
        self.failed: dict[tuple[str, str], str] = {}
        self.end = time.monotonic() + 60.0 * options.budget_minutes

    def run(self) -> None:
        """All that is wanted, size by size, until it is there or the time is over."""
        for size in self.sizes:
            while True:
                jobs = self._jobs(size)
                made = False
                for job in jobs:
                    if self._is_too_long(size, job):
                        progress(f"{job.name} does not fit into the rest of --budget-minutes")
                        return
                    with self.store.claimed(job.name) as is_mine:
                        if is_mine and job in self._jobs(size):  # another process may just have made it
                            self._make(size, job)
                            made = True
                    if made:
                        break
                if not jobs:
                    break
                if not made:
                    time.sleep(WAIT_SECONDS)

    def findings(self, size: Size) -> Findings:
        """What is known of a size."""
        return Findings(size, {name: self.digests[size.name, name] for name in NAMES}, self.store.lines())

    def write_page(self) -> str:
        """Writes the page anew, from what there is; returns it."""
        today, device = datetime.date.today().isoformat(), self.conditions["device"]
        facts = {
            "device": f"{device}, {self.options.threads} thread(s), {self.conditions['precision']}",
            "versions": machine.versions(),
            "command": f"`{command_line(self.options)}`",
        }
        findings = [self.findings(each) for each in self.sizes]
        failed = [f"{size}/{name} did not run: {why}" for (size, name), why in self.failed.items()]
        text = page(findings, NAMES, f"Learning, {today}, {device}", facts, failed)
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        self.options.output.write_text(text, encoding="utf-8")
        return text

    def contenders(self, size: Size) -> list[str]:
        """Those that were asked for, without one that is another one at this size, or cannot run."""
        left_out = {name for place, name in self.failed if place == size.name}
        if size.heads == size.kv_heads:
            left_out.add("nanochat-mha")
        return [name for name in self.options.contenders if name not in left_out]

    def _recipe(self, size: Size, name: str) -> dict[str, Any]:
        text = {"vocabulary": size.vocabulary, "length": size.length, "rows": size.rows}
        return {**learning_contenders.settings(name, size), "text": text, "machine": self.conditions}

    def _jobs(self, size: Size) -> list[Job]:
        """What can be made now, the next one first. One job of kind pace stands for all contenders."""
        findings, kinds = self.findings(size), self.options.only
        lacking = [name for name in self.contenders(size) if findings.pace(name) is None]
        jobs = findings.jobs(self.contenders(size), self.options.seeds, kinds)
        pace = [Job(size.name, "all", "pace", 0, 1.0, size.steps)] if lacking and "pace" in kinds else []
        return pace + jobs

    def _make(self, size: Size, job: Job) -> None:
        progress(f"{job.name} begins")
        if size.name not in self.texts:
            self.texts[size.name] = Text(size, self.options.folder / "data-cache", progress)
        if job.kind == "pace":
            self._measure(size, job)
        else:
            try:
                result = train(job.contender, self._task(job))
            except Exception as error:
                self._fail(size, job.contender, error)
            else:
                self._add(job, result)
                progress(
                    f"{job.name}: {result.bits_per_byte} bits per byte, {result.step_seconds:.3f} s a step"
                )
        self.write_page()

    def _fail(self, size: Size, name: str, error: Exception) -> None:
        """A contender that cannot run has no more runs, and the page says why; ours is a fault."""
        if name == OURS:
            raise error
        self.failed[size.name, name] = reason(error)
        progress(f"{size.name}/{name} did not run: {reason(error)}")

    def _measure(self, size: Size, job: Job) -> None:
        """What a step of each contender costs that lacks it, beside llmkit's."""
        findings = self.findings(size)
        lacking = [name for name in self.contenders(size) if findings.pace(name) is None]
        tasks = {name: self._task(job) for name in dict.fromkeys((OURS, *lacking))}
        results = measure_steps(tasks, lambda name, error: self._fail(size, name, error))
        reference = results[OURS].step_seconds, self.digests[size.name, OURS]
        for name in lacking:
            if name in results:
                self._add(replace(job, contender=name), results[name], reference)
        progress(", ".join(f"{name} {each.step_seconds:.3f} s a step" for name, each in results.items()))

    def _add(self, job: Job, result: Result, reference: tuple[float, str] | None = None) -> None:
        self.store.add(
            Line(
                job,
                self.digests[job.size, job.contender],
                result.bits_per_byte,
                result.step_seconds,
                result.parameters,
                reference,
                self._facts(),
            )
        )

    def _facts(self) -> dict[str, str]:
        """What the page says of a run beside its figures."""
        load = f"{os.getloadavg()[0]:.1f}"
        return {"date": datetime.date.today().isoformat(), "commit": self.commit, "load": load}

    def _task(self, job: Job) -> Task:
        return Task(
            self.texts[job.size], job.seed, job.steps, job.factor, self.conditions["precision"],
            compiled=self.options.compile and not compiler_missing(CPU),
        )  # fmt: skip

    def _is_too_long(self, size: Size, job: Job) -> bool:
        """Whether a run would not end in time, by what steps of the contender took so far."""
        lines = self.store.lines()
        known = [x.step_seconds for x in lines if (x.job.size, x.job.contender) == (size.name, job.contender)]
        expected = job.steps * known[-1] / self.options.threads if known else 0.0
        return time.monotonic() + expected > self.end


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # of the whole process, as in training; so all contenders have it
    try:
        judge = Judge(options)
        if not options.page:
            # Contenders and shapes that share a function are compiled in one process.
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                judge.run()
        print(judge.write_page())
    except UserError as error:
        print(f"learning.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress("stopped; the same command goes on")
        return 130
    progress(f"written to {options.output}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with code 2 and a message if something in it is wrong."""
    parser = argparse.ArgumentParser(
        prog="learning.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, sizes = parser.add_argument, (*SIZES, learning_sizes.TOY.name)
    add(
        "--sizes", type=list_among(sizes), default=list(SIZES), metavar="A,B",
        help=f"among {', '.join(sizes)} (default: all but the last)",
    )  # fmt: skip
    add(
        "--contenders", type=list_among(NAMES), default=list(NAMES), metavar="A,B",
        help=f"among {', '.join(NAMES)} (default: all)",
    )  # fmt: skip
    add("--seeds", type=_seeds, default=[0, 1, 2], metavar="A,B", help="default 0,1,2")
    add(
        "--only", type=list_among(KINDS), default=list(KINDS), metavar="A,B",
        help=f"which runs, among {', '.join(KINDS)}: costs of a step, the sweep, equal tokens, equal seconds",
    )  # fmt: skip
    add("--budget-minutes", type=float, default=math.inf, metavar="N", help="begin nothing that ends later")
    add("--threads", type=int, default=1, metavar="N", help="of PyTorch (default 1)")
    add(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="default: bf16 where the processor has units for it",
    )  # fmt: skip
    add("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    folder = Path("runs/learning")
    add("--folder", type=Path, default=folder, help=f"where results are kept (default {folder})")
    add(
        "--begin-anew", type=_size_and_contender, action="append", default=[], metavar="SIZE/CONTENDER",
        help="the runs so far of this contender count no more",
    )  # fmt: skip
    add("--page", action="store_true", help="no runs, only the page of what there is")
    add("--output", type=Path, metavar="FILE", help="the page (default: learning.md in the folder)")
    options = parser.parse_args(arguments)
    if options.threads < 1 or not options.budget_minutes > 0:
        parser.error("--threads and --budget-minutes must be above 0")
    options.output = options.output or options.folder / "learning.md"
    return options


def command_line(options: argparse.Namespace) -> str:
    """The command that repeats the measurement, without the folders of this machine."""
    seeds = ",".join(map(str, options.seeds))
    compiled = "" if options.compile else " --no-compile"
    return (
        f"python benchmarks/learning.py --sizes {','.join(options.sizes)} "
        f"--contenders {','.join(options.contenders)} --seeds {seeds} --threads {options.threads}{compiled}"
    )


def _seeds(text: str) -> list[int]:
    seeds = text.split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in seeds))


def _size_and_contender(text: str) -> tuple[str, str]:
    size, _, contender = text.partition("/")
    if size not in (*SIZES, learning_sizes.TOY.name) or contender not in NAMES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size and a contender, such as demo/llmkit")
    return size, contender


if __name__ == "__main__":
    sys.exit(main())
