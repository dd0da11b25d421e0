"""Runs that are saved under one layout and go on under another; see test_elastic.py."""

from __future__ import annotations

from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from llmkit.batch import Batch
from llmkit.checkpoint import read
from llmkit.checkpoint.write import save
from llmkit.engine.base import Engine
from llmkit.model.gpt import GPT
from llmkit.parallel.context import context_parallel
from llmkit.parallel.mesh import Mesh
from llmkit.parity.compare import relative_error
from llmkit.parity.run import VALUES, make_engine
from llmkit.parity.state import gather_state
from llmkit.parity.subjects import LENGTH, MODELS, RandomWeights, count_targets, global_batch, share
from tests.parity.launched import mesh_maker

LAYOUTS: dict[str, dict[str, Any]] = {
    "native": {"world_size": 1},
    "DDP2": {"world_size": 2},
    "Z1x2": {"world_size": 2, "zero_stage": 1, "engine": "deepspeed"},
    "native-Z1x2": {"world_size": 2, "zero_stage": 1},
    "Z2x2": {"world_size": 2, "zero_stage": 2},
    "native-Z2x2": {"world_size": 2, "zero_stage": 2, "engine": "native"},
    "Z3x2": {"world_size": 2, "zero_stage": 3},
    "Z1xTP2xDP2": {"world_size": 4, "zero_stage": 1, "tensor_parallel_size": 2, "engine": "deepspeed"},
    "native-Z1xTP2xDP2": {"world_size": 4, "zero_stage": 1, "tensor_parallel_size": 2},
    "Z3xTP2xDP2": {"world_size": 4, "zero_stage": 3, "tensor_parallel_size": 2},
    "TP4": {"world_size": 4, "tensor_parallel_size": 4},
    "native-Z1xCP2": {"world_size": 2, "zero_stage": 1, "context_parallel_size": 2},
    "Z3xTP2xCP2": {
        "world_size": 4, "zero_stage": 3, "tensor_parallel_size": 2, "context_parallel_size": 2,
        "context_parallel_form": "ring",
    },
}  # fmt: skip
"""Settings of the section `parallel`."""
SHAPE = MODELS["odd"]
SAVED, END = 5, 10
KINDS = ("master", "ema", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""Under Muon, which leaves embedding, norms and biases to AdamW, so that there is all of it."""


class Pair(NamedTuple):
    """A run that was saved under the layout `source` and goes on under `target`."""

    precision: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.precision} {self.source} -> {self.target}"


def start(root: str, pairs: list[list[str]]) -> None:
    """Trains the sources of this world from the same weights; saves in the middle and at the end."""
    for precision, name in dict.fromkeys((precision, source) for precision, source, _ in pairs):
        if LAYOUTS[name]["world_size"] != world_size():
            continue
        engine, mesh = make(name, precision)
        engine.write_pieces(RandomWeights(SHAPE), optimizer_steps=0)
        folder = Path(root) / precision / name
        folder.mkdir(parents=True, exist_ok=True)
        average = gather_state(engine, mesh, ["master"])["master"]
        for first, last in ((0, SAVED), (SAVED, END)):
            for step in range(first, last):
                train(engine, mesh, step, step + 1)
                check_average(engine, mesh, average)
            save(
                folder, last, engine.read_pieces(),
                state={"updates": engine.optimizer_steps}, model=SHAPE.to_dict(), config={},
                extra_files={}, keep_last=2, mesh=mesh,
            )  # fmt: skip
        check_exchange(engine, mesh, 1e-6 if precision == "fp32" else 1e-2)
        engine.close()


def check_average(engine: Engine, mesh: Mesh, average: dict[str, torch.Tensor]) -> None:
    """Takes the newest masters into `average`, in fp64, and compares the engine's own average with it."""
    state = gather_state(engine, mesh, ["master", "ema"])
    for name, master in state["master"].items():
        average[name] = average[name].double().lerp(master.double(), VALUES.ema)
        assert relative_error(state["ema"][name], average[name]) < 3e-7, name


def check_exchange(engine: Engine, mesh: Mesh, allowed: float) -> None:
    """That the model computes with the average between two exchanges, and with its weights after them."""
    batch = global_batch(SHAPE, 99, masked=True)

    def loss() -> float:
        mine = own_rows(batch, mesh)
        return float(mesh["data", "context"].sum(engine.evaluate(mine).nats.double().sum()))

    before, state = loss(), gather_state(engine, mesh, KINDS)
    engine.exchange_ema()
    averaged, swapped = loss(), gather_state(engine, mesh, KINDS)
    engine.exchange_ema()
    again = gather_state(engine, mesh, KINDS)
    assert loss() == before and all(
        torch.equal(again[kind][name], tensor) for kind in KINDS for name, tensor in state[kind].items()
    )
    assert all(torch.equal(swapped["master"][name], tensor) for name, tensor in state["ema"].items())
    alone = GPT(SHAPE)
    for name, parts in alone.parameter_slices().items():
        for part in parts:
            alone.get_parameter(name).data[part.start : part.stop] = state["ema"][part.name]
    expected = float(alone(batch).nats.detach().double().sum())
    assert abs(averaged / expected - 1) < allowed and averaged != before


def go_on(root: str, pairs: list[list[str]]) -> dict[str, dict[str, Any]]:
    """Goes on under the targets of this world; pair -> what came of it."""
    found = {}
    for pair in starmap(Pair, pairs):
        if LAYOUTS[pair.target]["world_size"] != world_size():
            continue
        folder = Path(root) / pair.precision / pair.source
        middle = read.load(folder / f"step-{SAVED:08d}")
        end = read.load(folder / f"step-{END:08d}")
        engine, mesh = make(pair.target, pair.precision)
        engine.write_pieces(middle, middle.state["updates"])
        restored = errors(engine, mesh, middle)
        train(engine, mesh, SAVED, END)
        # In bf16 little is left of the gradient of a key's bias but rounding.
        keys = pair.precision == "fp32" or pair.source == pair.target
        found[str(pair)] = {
            "restored": restored,
            "end": errors(engine, mesh, end, keys),
            "updates": engine.optimizer_steps,
        }
        engine.close()
    return found


def start_and_go_on(root: str, pairs: list[list[str]]) -> dict[str, dict[str, Any]]:
    """Both, where all other sources are there already."""
    start(root, pairs)
    return go_on(root, pairs)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


meshes = mesh_maker()


def make(name: str, precision: str) -> tuple[Engine, Mesh]:
    layout = LAYOUTS[name]
    mesh = meshes(layout.get("tensor_parallel_size", 1), layout.get("context_parallel_size", 1))
    return make_engine(SHAPE, LAYOUTS[name], mesh, torch.device("cpu"), precision, 1, "muon"), mesh


def train(engine: Engine, mesh: Mesh, first: int, last: int) -> None:
    for step in range(first, last):
        batch = global_batch(SHAPE, step, masked=True)
        engine.train_step(own_rows(batch, mesh), count_targets(batch), VALUES)


def own_rows(batch: Batch, mesh: Mesh) -> list[Batch]:
    """The rows of this rank, or its piece of them; on four ranks rows are shared in a ring."""
    ranges = context_parallel(mesh, "ring" if mesh.world_size == 4 else "ulysses").own(LENGTH)
    return [each.cut(ranges) for each in share(batch, mesh["data"].rank, mesh["data"].size, 1)]


def errors(engine: Engine, mesh: Mesh, expected: read.Checkpoint, keys: bool = True) -> dict[str, float]:
    """Kind -> the largest relative error of a tensor; `keys`: with the biases of keys among them."""
    state = gather_state(engine, mesh, KINDS)
    assert {kind: set(state[kind]) for kind in KINDS} == {kind: set(expected.names(kind)) for kind in KINDS}
    return {
        kind: max(
            relative_error(tensor, expected.read(name, kind))
            for name, tensor in state[kind].items()
            if keys or not name.endswith("k_proj.bias")
        )
        for kind in KINDS
    }
