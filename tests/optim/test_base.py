"""The base class of registered optimizers."""

from __future__ import annotations

import pytest
import torch

from llmkit.config.optimizer_section import Optimizer as Settings
from llmkit.config.optimizer_section import ParameterGroup
from llmkit.optim.base import Optimizer
from llmkit.optim.build import Held, build_optimizers, groups_of, moments
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import Fragment, full_slice
from llmkit.precision import PRECISIONS
from llmkit.registry import register
from tests.examples.project import forgotten

SETTINGS = Settings.model_construct(name="averaged", learning_rate=0.5, weight_decay=0.25)


class Averaged(Optimizer):
    """Steps by the mean of all gradients so far."""

    states = ("total",)

    def update(self, parameter, gradient, state, group):
        state["total"] += gradient
        parameter -= group["lr"] * (state["total"] / state["step"] + group["weight_decay"] * parameter)


@pytest.fixture
def made():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))
    parts = {"m": [full_slice("m", (2, 3))], "v": [full_slice("v", (3,))]}
    with forgotten():
        register("optimizer", "averaged")(Averaged)
        tensors = {"m": matrix, "v": vector}
        held = [
            Held(group, tensors[name], [Fragment(name, 0, 0, tensors[name].numel())])
            for group in groups_of(parts, SETTINGS, ())
            for name in group.names
        ]
        device = torch.device("cpu")
        (optimizer,) = build_optimizers(
            held, parts, SETTINGS, Mesh(), device=device, precision=PRECISIONS["fp32"]
        )
        yield optimizer, matrix, vector


def test_it_owns_all_parameters_with_weight_decay_on_matrices(made):
    optimizer, matrix, vector = made
    assert [(group["params"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ([matrix], 0.25), ([vector], 0.0),
    ]  # fmt: skip
    assert moments(optimizer) == ("total",)


def test_each_update_sees_its_state(made):
    optimizer, matrix, vector = made
    for gradient in (1.0, 3.0):
        vector.grad = torch.full((3,), gradient)
        optimizer.step()
    assert torch.equal(vector, torch.full((3,), 1.0 - 0.5 * 1.0 - 0.5 * 2.0))
    assert torch.equal(matrix, torch.ones(2, 3))  # it had no gradient
    assert float(optimizer.state[vector]["step"]) == 2.0 and matrix not in optimizer.state


def test_a_refused_gradient_changes_nothing(made):
    optimizer, _, vector = made
    vector.grad = torch.full((3,), float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(vector, torch.ones(3)) and vector not in optimizer.state


def test_without_an_update_it_says_so():
    bare = Optimizer([{"params": [parameter := torch.nn.Parameter(torch.ones(1))]}], SETTINGS)
    parameter.grad = torch.ones(1)
    with pytest.raises(NotImplementedError, match="Optimizer has no update"):
        bare.step()


def test_its_groups_carry_its_name():
    parts = {"blocks.0.m": [full_slice("blocks.0.m", (2, 3))], "v": [full_slice("v", (3,))]}
    assert [(g.optimizer, g.names) for g in groups_of(parts, SETTINGS, {"blocks.0.m"})] == [
        ("averaged", ("blocks.0.m",)), ("averaged", ("v",)),
    ]  # fmt: skip


def test_groups_give_it_other_values_and_some_parameters_to_others():
    parts = {name: [full_slice(name, (2, 3))] for name in ("m", "n", "o")}
    groups = [ParameterGroup(params=["m"], learning_rate=0.125), ParameterGroup(params=["o"], name="adamw")]
    settings = SETTINGS.model_copy(update={"groups": groups})
    found = [(g.optimizer, g.learning_rate, g.weight_decay, g.names) for g in groups_of(parts, settings, ())]
    assert found == [
        ("averaged", 0.5, 0.25, ("n",)), ("averaged", 0.125, 0.25, ("m",)), ("adamw", 0.5, 0.25, ("o",)),
    ]  # fmt: skip
