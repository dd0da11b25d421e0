"""A model of which some parameters are frozen, in every engine; what the tests of it launch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

import llmkit
from llmkit.batch import Batch
from llmkit.engine.base import Engine
from llmkit.engine.native import NativeEngine
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.state import State, gather_state
from llmkit.parity.subjects import RandomWeights
from llmkit.precision import PRECISIONS, torch_dtype
from tests.engine.custom_models import LENGTH, STEPS, Sharded, Weights, make, train

FROZEN = ("embedding.weight", "blocks.0.into.weight", "blocks.0.out.bias", "blocks.1.out.weight")
"""Sharded by rows and by columns, and replicated; all of an odd number of elements, or padded."""
MODEL = {"type": "frozen-test-model", "width": 13}
KINDS = ("master", "exp_avg", "exp_avg_sq", "momentum_buffer")


@llmkit.register("model", "frozen-test-model")
class PartlyFrozen(Sharded):
    """The same, but that some parameters take no gradient."""

    def __init__(self, config: Sharded.Config, context: llmkit.ModelContext) -> None:
        super().__init__(config, context)
        for name in FROZEN:
            self.get_parameter(name).requires_grad_(False)


@llmkit.register("model", "all-frozen-test-model")
class AllFrozen(Sharded):
    """The same without anything to train."""

    def __init__(self, config: Sharded.Config, context: llmkit.ModelContext) -> None:
        super().__init__(config, context)
        self.requires_grad_(False)


class Stored(RandomWeights):
    """A gathered state as a source of one."""

    def __init__(self, state: State) -> None:
        self.state = state

    def names(self, kind: str) -> Collection[str]:
        return self.state.get(kind, ())

    def read(self, name: str, kind: str, *arguments: Any) -> Tensor:
        self.tensors = self.state[kind]
        return super().read(name, kind, *arguments)


def taken_up(engine: Engine, mesh: Mesh) -> tuple[list[float], State]:
    """Losses before and after the state is saved, spoilt and read back; what was saved."""
    losses = train(engine, mesh)
    assert gathered(engine) == []
    state = gather_state(engine, mesh, KINDS)
    engine.write_pieces(Weights(engine), 0)
    train(engine, mesh)
    engine.evaluate([Batch(torch.zeros(2, LENGTH, dtype=torch.long), torch.ones(2, LENGTH).long())])
    engine.write_pieces(Stored(state), STEPS)
    again = gather_state(engine, mesh, KINDS)
    assert all(again[kind][name].equal(t) for kind, tensors in state.items() for name, t in tensors.items())
    return losses + train(engine, mesh), state


def gathered(engine: Engine) -> list[str]:
    """Parameters that ZeRO-3 holds in full after a step, but for those that it always does."""
    return [
        name
        for name, weight in engine.model.named_parameters()
        if not getattr(weight, "ds_persist", True) and weight.data.numel() > 0
    ]


def compare(cases: list[dict[str, Any]], tensor_size: int) -> list[dict[str, Any]]:
    """Each case beside one process of the native engine."""
    mesh, found = make_mesh(tensor_size), []
    for case in cases:
        optimizer, precision = {"name": case["optimizer"]}, case["precision"]
        alone = make(Mesh(), MODEL, optimizer, precision)
        engine = make(mesh, MODEL, optimizer, precision, **case["parallel"])
        initial = Weights(alone).tensors
        expected, wanted = taken_up(alone, Mesh())
        losses, state = taken_up(engine, mesh)
        stored = set(alone.model.parameter_slices()) - set(FROZEN)
        trained = {p.name for name in stored for p in alone.model.parameter_slices()[name]}
        weights = torch_dtype(PRECISIONS[precision].weights)
        held = engine.masters.held if isinstance(engine, NativeEngine) else engine.held
        found.append(
            {
                "losses": [expected, losses],
                "kinds": [sorted(wanted), sorted(state)],
                "worst": worst_error(state, wanted, trained),
                "changed": [
                    name
                    for name in set(initial) - trained
                    if not state["master"][name].equal(initial[name].to(weights).float())
                ],
                "moments": sorted({name for kind in KINDS[1:] for name in state.get(kind, ())} - trained),
                "masters": sorted({f.parameter for each in held for f in each.fragments} & set(FROZEN)),
                "gradients": [n for n in FROZEN if engine.model.get_parameter(n).grad is not None],
            }
        )
        engine.close()
    return found


def worst_error(state: State, wanted: State, names: set[str]) -> list:
    """The largest relative error of a tensor, and which it is."""
    return max(
        [float((state[kind][name] - tensor).norm() / tensor.norm()), kind, name]
        for kind, tensors in wanted.items()
        for name, tensor in tensors.items()
        if name in names
    )


def nothing_to_train() -> str:
    """The error of a model of which all is frozen."""
    try:
        make(Mesh(), {**MODEL, "type": "all-frozen-test-model"}, {"name": "adamw"})
    except llmkit.UserError as error:
        return str(error)
    return ""
