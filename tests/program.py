"""Running the program as a user does, on a corpus and a model that take a second."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server
from tests.fork_server import Process
from tests.limits import HANG
from tests.ranks import world

CONFIG = """\
run:
  name: tiny
  deterministic: true
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  intermediate_size: 64
  qk_norm: true
  hidden_dropout: 0.1
data:
  sources:
    - type: text
      path: corpus
  tokenizer:
    type: bytes
  sequence_length: 32
train:
  max_steps: 12
  global_batch_size: 4
  precision: fp32
optimizer:
  learning_rate: 0.01
schedule:
  warmup_steps: 3
kernels:
  compile: false
checkpoint:
  every_steps: 5
  background: false
faults:
  watchdog: false
monitor:
  log_every: 1
  report: false
  wandb:
    mode: disabled
"""
SENTENCE = "the model reads a row of tokens and learns which token follows every other token in it"


SET_FOR_TESTS = ("MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS")
"""What the program sets itself for `run.deterministic`, and threads: as many as a user has."""


def make_project(folder: Path, documents: int = 40) -> Path:
    """A folder with a configuration and a corpus; returns the configuration's path."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(documents):
        text = " ".join(draw.choice(SENTENCE.split()) for _ in range(60))
        (corpus / f"{number:03d}.txt").write_text(f"{text}.\n")
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    return config


def environment() -> dict[str, str]:
    """This process's environment as a user would have it."""
    inherited = {name: value for name, value in os.environ.items() if name not in SET_FOR_TESTS}
    return {**inherited, "PYTHONPATH": str(Path(__file__).parents[1])}


def start(folder: Path, *arguments: str) -> Process:
    """The llmkit command, started in `folder`."""
    return fork_server.start("llmkit", arguments, cwd=folder, environment=environment())


def start_ranks(folder: Path, world_size: int, *arguments: str) -> list[Process]:
    """The llmkit command on the ranks of a world, as torchrun would start it."""
    return [
        fork_server.start("llmkit", arguments, cwd=folder, environment=environment() | variables)
        for variables in (world(world_size) if world_size > 1 else [{}])
    ]


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Output of a command that must end with `code`."""
    process = start(folder, *arguments)
    assert process.wait(HANG) == code, process.output()
    return process.output()


def train(*overrides: str) -> int:
    """Exit code of `llmkit train`, called in this process in the folder of a project."""
    from llmkit.cli import main

    return main(["train", "tiny.yaml", *overrides])


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Calls `act` as step `number` of this test begins, counted over all its runs."""
    from llmkit.engine.native import NativeEngine

    train_step = NativeEngine.train_step
    begun = [0]

    def counted(*arguments: Any) -> Any:
        begun[0] += 1
        if begun[0] == number:
            act()
        return train_step(*arguments)

    monkeypatch.setattr(NativeEngine, "train_step", counted)


def once(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object], call: int = 1
) -> None:
    """Calls `act` before the call number `call` of a function, of which nothing else changes."""
    function, calls = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            act()
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)


def end(number: int = signal.SIGTERM) -> None:
    """Sends this process a signal."""
    os.kill(os.getpid(), number)


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> list[str]:
    """Names of what is in events.jsonl."""
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def recorded(event: str, folder: Path = Path("runs/tiny")) -> list[dict[str, Any]]:
    """The events of one kind in events.jsonl."""
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [row for row in lines if row["event"] == event]


def last_event(folder: Path = Path("runs/tiny")) -> dict[str, Any]:
    """The last line of events.jsonl."""
    event: dict[str, Any] = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    return event


TIMELESS = (
    "step",
    "tokens",
    "loss",
    "loss_mean",
    "grad_norm",
    "learning_rate",
    "skipped",
    "eval_loss",
    "eval_bits_per_byte",
)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the columns that tell of time and memory."""
    return [{name: value for name, value in row.items() if name in TIMELESS} for row in rows(folder)]


def losses(name: str) -> list[float]:
    """Those of the steps of a run in runs/ of the working directory."""
    return [row["loss"] for row in rows(Path("runs") / name) if "loss" in row]
