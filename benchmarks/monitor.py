"""Measures what monitoring costs a step: processor time with it and without, in turns, in one run.

The variants take turns in blocks of steps, so that a disturbance of the machine hits all alike; the medians
of their blocks are compared. What lies in the calls of monitoring is counted beside that, by the time of the
thread that trains. In every variant, "off" too, the engine marks the parts of its steps.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import machine
from llmkit import proc
from llmkit.api import load
from llmkit.loop.hook import Hook
from llmkit.loop.resume import Options
from llmkit.loop.trainer import Trainer
from llmkit.loop.watching import WatchHook
from llmkit.monitor.console import Console
from llmkit.monitor.metrics import MetricsSink
from llmkit.monitor.progress import Progress
from llmkit.train import train
from llmkit.watchdog.watch import Watch

WARMUP = 3
"""Steps before the first block."""
SHAPES = {
    "toy": {"model.hidden_size": 16, "model.num_hidden_layers": 1, "model.num_attention_heads": 2,
            "data.sequence_length": 16, "train.global_batch_size": 2},
    "demo": {"model.hidden_size": 192, "model.num_hidden_layers": 4, "model.num_attention_heads": 3,
             "model.vocab_size": 4096, "data.sequence_length": 256, "train.global_batch_size": 8},
    "124m": {"model.hidden_size": 768, "model.num_hidden_layers": 12, "model.num_attention_heads": 12,
             "model.vocab_size": 50257, "data.sequence_length": 256, "train.global_batch_size": 1},
}  # fmt: skip
SETTINGS = {
    "run.name": "monitored", "data.tokenizer.type": "bytes", "train.precision": "fp32",
    "kernels.compile": "false", "checkpoint.every_steps": 0, "data.validation_fraction": 0,
    "schedule.warmup_steps": 0, "monitor.log_every": 1, "monitor.report": "false",
    "faults.max_step_seconds": 1e6,
}  # fmt: skip


class Variant(NamedTuple):
    """log_every, statistics_every: as in `monitor`; 0 = none. live: whether a terminal's view is drawn.

    watched: whether the watchdog is told of phases and steps.
    """

    name: str
    log_every: int
    live: bool = False
    statistics_every: int = 0
    watched: bool = False


VARIANTS = (
    Variant("off", 0),
    Variant("watchdog", 0, watched=True),
    Variant("rows every 10 steps", 10),
    Variant("rows every 10 steps, live view", 10, live=True),
    Variant("rows and statistics every 10 steps", 10, statistics_every=10),
    Variant("rows every step", 1),
    Variant("rows every step, live view", 1, live=True),
)


class Block(NamedTuple):
    """Processor seconds a step: of this process, of its helpers, and in calls of monitoring."""

    process: float
    helpers: float
    calls: float


class Turns(Hook):
    """Switches the monitoring of a run from block to block. blocks: by the name of the variant."""

    def __init__(self, steps: int, rounds: int) -> None:
        self.steps, self.rounds = steps, rounds
        self.blocks: dict[str, list[Block]] = defaultdict(list)
        self._counted = 0.0
        self._variant = VARIANTS[0]
        self._live: Console | None = None

    @property
    def max_steps(self) -> int:
        return WARMUP + self.steps * self.rounds * len(VARIANTS) + 1

    def on_start(self, t: Trainer) -> None:
        self._monitor, (self._file,) = t.config.monitor, (s for s in t._sinks if isinstance(s, MetricsSink))
        for owner, name in ((t.log, "after_step"), (t.work, "causal"), (t.console, "progress")):
            setattr(owner, name, self._counting(getattr(owner, name)))
        self._watch, self._beat = t.watch, self._counting(t.phases.beat)
        (self._told,) = (hook for hook in t.hooks._active if isinstance(hook, WatchHook))
        self._told.after_step = self._counting(self._told.after_step)  # type: ignore[method-assign]
        self._switch(t, VARIANTS[0])

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.thread_time()
            result = function(*arguments)
            self._counted += time.thread_time() - begin
            return result

        return call

    def _switch(self, t: Trainer, variant: Variant) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None
        self._variant = variant
        chosen = {"log_every": variant.log_every or 10**9, "statistics_every": variant.statistics_every}
        t.config = t.config.model_copy(update={"monitor": self._monitor.model_copy(update=chosen)})
        t.watch = self._told._watch = self._watch if variant.watched else Watch()
        t.phases.beat = self._beat if variant.watched else lambda name: None
        t._sinks = [self._file] if variant.log_every else []
        if variant.live:
            self._live = Console(stream=open(os.devnull, "w"), terminal=True, size=(120, 40))  # noqa: SIM115
            self._live.follow(Progress(max_steps=self.max_steps), lambda: None)
            t._sinks.append(self._live)
        self._began = time.process_time(), helpers_seconds(os.getpid()), self._counted

    def after_step(self, t: Trainer, result: Any) -> None:
        done = t.state.step - WARMUP
        if done < 0 or done % self.steps:
            return
        if done:
            now = time.process_time(), helpers_seconds(os.getpid()), self._counted
            block = Block(*((b - a) / self.steps for a, b in zip(self._began, now, strict=True)))
            self.blocks[self._variant.name].append(block)
        self._switch(t, VARIANTS[done // self.steps % len(VARIANTS)])


def helpers_seconds(parent: int) -> float:
    """Processor seconds of all processes below `parent` that run now."""
    return sum(map(proc.own_seconds, proc.descendants(parent)))


def lines(blocks: dict[str, list[Block]]) -> Iterator[str]:
    """The table, in milliseconds a step; medians of the blocks."""
    yield "Statistics of layers are measured every 100 steps by default: a tenth of their cost here."
    yield ""
    yield "| monitoring | process | beside off | helpers | in its calls | share |"
    yield "| --- | --: | --: | --: | --: | --: |"
    off = blocks[VARIANTS[0].name]
    base = statistics.median(block.process for block in off)
    for name, found in blocks.items():
        process, helpers, calls = (1e3 * statistics.median(column) for column in zip(*found, strict=True))
        beside = statistics.median(a.process / b.process - 1 for a, b in zip(found, off, strict=True))
        yield (
            f"| {name} | {process:.3f} | {100 * beside:+.2f} % | {helpers:.3f} | {calls:.3f} "
            f"| {calls / 10 / base:.2f} % |"
        )


def measure(
    shape: str, steps: int, rounds: int, wandb: str, length: int | None = None
) -> dict[str, list[Block]]:
    """Trains a run of that shape under every variant in turns. length: of a sequence, if not its own."""
    turns = Turns(steps, rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        (folder / "corpus/text.txt").write_text("the model reads a row of tokens and learns each\n" * 20_000)
        config = folder / "run.yaml"
        config.write_text("data: {sources: [{type: text, path: corpus}]}\n")
        given = SETTINGS | SHAPES[shape] | {"train.max_steps": turns.max_steps, "monitor.wandb.mode": wandb}
        given |= {"run.dir": str(folder / "runs"), "data.cache_dir": str(folder / "cache")}
        given["data.sources.0.path"] = str(folder / "corpus")
        if length is not None:
            given["data.sequence_length"] = length
        loaded = load(config, [f"{key}={value}" for key, value in given.items()])
        options = Options(quiet=True)
        train(loaded, options, started=time.monotonic(), environment=dict(os.environ), hooks=[turns])
    return turns.blocks


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="monitor.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", nargs="+", choices=sorted(SHAPES), default=["demo", "124m"])
    add("--steps", type=int, default=10, help="of a block")
    add("--rounds", type=int, default=10, help="blocks of each variant")
    add("--threads", type=int, default=1)
    add("--length", type=int, help="tokens of a sequence; default: as the shape has it")
    add("--wandb", choices=["disabled", "offline"], default="offline")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    today, name = datetime.date.today().isoformat(), machine.device_name(torch.device("cpu"))
    text = [f"# Cost of monitoring, {today}, {name}", "", f"{machine.versions()}; commit {machine.commit()}"]
    turns = f"{options.rounds} blocks of {options.steps} steps of each, in turns"
    text += ["", f"{turns}; {options.threads} threads; Weights & Biases {options.wandb}"]
    for shape in options.shapes:
        blocks = measure(shape, options.steps, options.rounds, options.wandb, options.length)
        length = options.length or SHAPES[shape]["data.sequence_length"]
        tokens = f"{SHAPES[shape]['train.global_batch_size']} x {length} tokens a step"
        text += ["", f"## {shape}, {tokens}", "", *lines(blocks)]
    options.out.mkdir(parents=True, exist_ok=True)
    path = machine.new_file(options.out, f"{today}-monitor-{machine.slug(name)}")
    path.write_text("\n".join([*text, ""]), encoding="utf-8")
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
