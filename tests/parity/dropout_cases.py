"""What dropout does on several processes; see test_dropout.py. Each finding is true where all is well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import llmkit.kernels.dropout
import llmkit.model.activation_checkpointing
import llmkit.model.dropout
from llmkit.batch import Batch
from llmkit.engine.base import Engine
from llmkit.model.gpt import GPT
from llmkit.parallel.context import context_parallel
from llmkit.parallel.mesh import DIMENSIONS, Mesh, make_mesh
from llmkit.parallel.randomness import seed_step
from llmkit.parity.compare import relative_error
from llmkit.parity.run import make_engine
from llmkit.parity.state import State, gather_state
from llmkit.parity.subjects import LENGTH, MODELS, RandomWeights, count_targets, global_batch

SHAPE = replace(MODELS["modern"], num_key_value_heads=4, hidden_dropout=0.2, attention_dropout=0.2)
CPU = torch.device("cpu")
Findings = dict[str, bool]


class EqualHeads(RandomWeights):
    """Every head has the weights of the first: what two heads give differs by dropout alone."""

    def __init__(self) -> None:
        super().__init__(SHAPE)
        for name, tensor in self.tensors.items():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                tensor.copy_(tensor[: SHAPE.head_dim].repeat(SHAPE.num_attention_heads, 1))


def all_findings(mistakes: list[str]) -> dict[str, Findings]:
    """Mistake made on purpose -> findings on 2 x 2 processes; "" is without one."""
    mesh = make_mesh(2)
    found = {"": _at_stage(0, mesh) | _at_stage(3, mesh) | _of_shared_rows(make_mesh(1, context_size=2))}
    for name in mistakes:
        with MISTAKES[name]():
            found[name] = _at_stage(0, mesh, replays=name == "nothing_replayed")
    return found


def _at_stage(stage: int, mesh: Mesh, replays: bool = True) -> Findings:
    """replays: whether steps are taken again, with recomputation and without."""
    whole, pieces = (
        _step(
            mesh,
            {
                "world_size": 4,
                "tensor_parallel_size": 2,
                "sequence_parallel": sequence_parallel,
                "zero_stage": stage,
            },
        )
        for sequence_parallel in (False, True)
    )
    found = {
        "what a group holds alike is alike": _alike(whole.blocks, mesh, of="tensor"),
        "data ranks draw differently": not _alike(whole.blocks, mesh, of="data"),
        "heads on other ranks draw differently": not _alike(whole.heads, mesh, of="tensor"),
        "pieces of a sequence draw differently": not _alike(pieces.dropped, mesh, of="tensor"),
        "something is dropped": 0.1 < pieces.dropped.float().mean() < 0.3,
    }
    for how in ("full", "selective") if replays else ():
        for plain in (whole, pieces):
            layout = {**plain.layout, "activation_checkpointing": how}
            name = f"{how} recomputation replays{' pieces' * layout['sequence_parallel']}"
            found[name] = _equal(_step(mesh, layout).gradients, plain.gradients)
    if replays:
        again = _step(mesh, whole.layout)
        found["the same seed draws the same"] = _equal(again.gradients, whole.gradients)
    return {f"Z{stage}: {what}": bool(well) for what, well in found.items()}


def _of_shared_rows(mesh: Mesh) -> Findings:
    """Two ranks with a piece of the same rows, and two more with the same."""
    layout = {"world_size": 4, "context_parallel_size": 2}
    plain = _step(mesh, layout)
    found = {
        "pieces of rows draw differently": not _alike(plain.dropped, mesh, of="context"),
        "ranks with other rows draw differently": not _alike(plain.dropped, mesh, of="data"),
    }
    for how in ("full", "selective"):
        again = _step(mesh, {**layout, "activation_checkpointing": how})
        found[f"{how} recomputation replays pieces of rows"] = _equal(again.gradients, plain.gradients)
    return found


class _Seen:
    """One step: the output of the blocks, the input of the first output projection, zeros, gradients."""

    def __init__(self, layout: dict[str, Any]) -> None:
        self.layout = layout
        self.blocks = self.heads = self.dropped = torch.empty(0)
        self.gradients: State = {}


def _step(mesh: Mesh, layout: dict[str, Any]) -> _Seen:
    """A step in which all data-parallel ranks get the same rows."""
    seen = _Seen(layout)
    engine: Engine = make_engine(SHAPE, layout, mesh, CPU, "fp32", 1)
    engine.write_pieces(EqualHeads(), optimizer_steps=0)
    handles = _watch(engine.model, seen)
    batch = global_batch(SHAPE, 0, masked=False)
    seed_step(0, 0, mesh["data", "context"].rank)
    rows = slice(0, 3)
    mine = Batch(batch.tokens[rows], batch.labels[rows]).cut(context_parallel(mesh, "ulysses").own(LENGTH))
    engine.train_step([mine], count_targets(batch))
    for handle in handles:
        handle.remove()
    seen.gradients = gather_state(engine, mesh, ["exp_avg"])
    engine.close()
    return seen


def _watch(model: GPT, seen: _Seen) -> list[Any]:
    """Notes what flows in the first forward pass; recomputation comes later and is not noted."""

    def first_block(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen.dropped.numel():
            seen.dropped = inputs[0].detach() == 0.0

    def heads(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen.heads.numel():
            seen.heads = inputs[0].detach().clone()

    def last_block(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not seen.blocks.numel():
            seen.blocks = output.detach().clone()

    first, last = model.blocks[0], model.blocks[-1]
    return [
        first.register_forward_pre_hook(first_block),
        first.attention.o_proj.register_forward_pre_hook(heads),
        last.register_forward_hook(last_block),
    ]


def _alike(tensor: Tensor, mesh: Mesh, of: str) -> bool:
    """Whether all ranks of each group of this kind have the same, bit for bit."""
    digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    group = mesh[tuple(name for name in DIMENSIONS if name != of)].rank
    everyone = [tuple(json.loads(text)) for text in mesh.all_gather_text(json.dumps([group, digest]))]
    return len(set(everyone)) == len({group for group, _ in everyone})


def _equal(a: State, b: State) -> bool:
    """Up to the rounding of sums over processes."""
    pairs = ((tensor, b[kind][name]) for kind, tensors in a.items() for name, tensor in tensors.items())
    return all(relative_error(mine, other) < 1e-6 for mine, other in pairs)


# Mistakes


@contextmanager
def one_seed_for_all_data_ranks() -> Iterator[None]:
    real = seed_step
    with patch(f"{__name__}.seed_step", lambda seed, step, data_rank=0: real(seed, step)):
        yield


@contextmanager
def one_stream_for_a_group() -> Iterator[None]:
    real = llmkit.model.dropout.own_stream
    with patch("llmkit.model.dropout.own_stream", lambda rank, device: real(0, device)):
        yield


@contextmanager
def no_shared_keys() -> Iterator[None]:
    real = llmkit.kernels.dropout.dropout

    def keyless(x: Tensor, probability: float, key: Tensor | None = None) -> Tensor:
        return real(x, probability)

    with patch("llmkit.kernels.dropout.dropout", keyless):  # which dropout_add calls
        yield


@contextmanager
def nothing_replayed() -> Iterator[None]:
    real = llmkit.model.activation_checkpointing.checkpoint

    def forgetful(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **{**options, "preserve_rng_state": False})

    with patch("llmkit.model.activation_checkpointing.checkpoint", forgetful):
        yield


MISTAKES = {
    each.__name__: each
    for each in (one_seed_for_all_data_ranks, one_stream_for_a_group, no_shared_keys, nothing_replayed)
}
