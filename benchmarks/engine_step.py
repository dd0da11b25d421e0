"""Measures a training step of the engines on the processes of one launch, in turns.

torchrun --nproc_per_node 2 benchmarks/engine_step.py [--shape NAME] [--rounds N] [CASE ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.timing import Runner, take_turns
from benchmarks.workloads import make_batches, make_workload
from llmkit.batch import IGNORE, Batch
from llmkit.device import device_facts
from llmkit.engine.build import build_engine
from llmkit.optim.exchange import MatrixExchange
from llmkit.optim.muon import Muon
from llmkit.parallel.mesh import Axis, Mesh
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group
from llmkit.plan import plan_for_shape

DEEPSPEED = {"zero_stage": 1, "engine": "deepspeed"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("adamw", {}),
    "zero1": ("adamw", {"zero_stage": 1}),
    "zero2": ("adamw", {"zero_stage": 2, "engine": "native"}),
    "deepspeed1": ("adamw", DEEPSPEED),
    "deepspeed2": ("adamw", {"zero_stage": 2, "engine": "deepspeed"}),
    "ddp-muon": ("muon", {}),
    "ddp-muon-replicated": ("muon", {}),
    "zero1-muon": ("muon", {"zero_stage": 1}),
    "deepspeed1-muon": ("muon", DEEPSPEED),
}
"""Name -> optimizer and settings of `parallel`. replicated: every rank iterates on all matrices."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="engine_step.py", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--shape", default="14m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each case in a round")
    options = parser.parse_args(arguments)
    names = options.cases or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    if any(CASES[name][1].get("engine") == "deepspeed" for name in names):
        from llmkit.engine.deepspeed import import_deepspeed

        import_deepspeed()
    with process_group(rank_info_from_env(os.environ), timedelta(minutes=10), needs_group=True) as joined:
        runners = measure(names, options.shape, joined.split(), options.rounds, options.steps)
        for name, runner in runners.items() if joined.rank == 0 else ():
            rounds, loss = [median(seconds) for seconds in runner.rounds], float(runner.losses[-1])
            print(f"{name:<20}  {median(rounds):.4f} s  {min(rounds):.4f} to {max(rounds):.4f}  {loss:.4f}")
    return 0


def measure(names: Sequence[str], shape: str, mesh: Mesh, rounds: int, steps: int) -> dict[str, Runner]:
    """The cases after `rounds` turns of `steps` timed steps each."""
    runners = {name: make_runner(name, shape, mesh) for name in names}
    take_turns(runners, warmup=2, steps=steps, rounds=rounds, failed=_raise)
    return runners


def make_runner(name: str, shape: str, mesh: Mesh) -> Runner:
    """The case, ready for its first step on this rank's rows."""
    work, (optimizer, parallel) = make_workload(shape, mesh.device), CASES[name]
    ranks = mesh["data"].size
    sections = {
        "data": work.config.data.model_dump(),
        "train": {"max_steps": 1, "global_batch_size": work.rows, "micro_batch_size": work.rows // ranks},
        "optimizer": {"name": optimizer},
        "parallel": {"world_size": mesh.world_size, **parallel},
        "kernels": {"compile": False},
    }
    engine = build_engine(
        plan_for_shape(work.shape, sections, device_facts(mesh.device)), mesh, device=mesh.device
    )
    if name.endswith("replicated"):
        (muon,) = (each for each in engine.optimizers if isinstance(each, Muon))  # type: ignore[attr-defined]
        shards = [shard for held in muon.shards for shard in held]
        shapes = {shard.name: shard.shape for shard in shards}
        dtype = muon.exchange.dtype
        muon.exchange = MatrixExchange(shards, shapes, Axis(), device=mesh.device, dtype=dtype)

    def step(micro_batches: Sequence[Batch]) -> torch.Tensor:
        (batch,) = micro_batches
        tokens, labels = (each[mesh["data"].rank :: ranks] for each in (batch.tokens, batch.labels))
        targets = int((batch.labels != IGNORE).sum())
        return engine.train_step([Batch(tokens, labels)], targets).loss_sum / targets

    return Runner(step, make_batches(work, mesh.device), mesh.device)


def _raise(name: str, error: Exception) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(main())
