"""Which optimizer updates which parameter, with which weight decay."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import llmkit
from llmkit import registry
from llmkit.config.groups import Group
from llmkit.config.optimizer_section import Optimizer
from llmkit.errors import UserError
from llmkit.optim.build import (
    Held,
    build_optimizers,
    build_simple,
    groups_of,
    matrix_shapes,
    moments,
    set_values,
)
from llmkit.optim.muon import Muon
from llmkit.optim.schedule import StepValues
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import Fragment, ParameterSlice, full_slice
from llmkit.precision import PRECISIONS

SLICES = {
    "embedding.weight": [full_slice("embedding.weight", (11, 4))],
    "qkv.weight": [
        ParameterSlice("q", (4, 4), ((0, 4), (0, 4)), 0, 4),
        ParameterSlice("k", (2, 4), ((0, 2), (0, 4)), 4, 6),
    ],
    "norm.weight": [full_slice("norm.weight", (4,))],
    "down.weight": [full_slice("down.weight", (4, 8))],
}
SHAPES = {"embedding.weight": (11, 4), "qkv.weight": (6, 4), "norm.weight": (4,), "down.weight": (4, 8)}
GROUP = Group("adamw", ("w",), 0.5, 0.25, (0.9, 0.95), 1e-8, 0.8)
HIDDEN = {"qkv.weight", "down.weight"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("adamw", [("adamw", 0.1, "embedding qkv down"), ("adamw", 0.0, "norm")]),
        ("muon", [("adamw", 0.1, "embedding"), ("adamw", 0.0, "norm"), ("muon", 0.1, "qkv down")]),
    ],
)
def test_matrices_decay_and_hidden_ones_are_muons(name, wanted):
    groups = groups_of(SLICES, Optimizer(name=name, weight_decay=0.1), HIDDEN)
    found = [
        (g.optimizer, g.weight_decay, " ".join(each.removesuffix(".weight") for each in g.names))
        for g in groups
    ]
    assert found == wanted


def test_a_group_without_parameters_is_none():
    assert [g.optimizer for g in groups_of({"norm": SLICES["norm.weight"]}, Optimizer(name="muon"), ())] == [
        "adamw"
    ]


def test_stacked_matrices_are_told_apart():
    assert matrix_shapes(["qkv.weight", "down.weight"], SLICES) == {
        "q": (4, 4), "k": (2, 4), "down.weight": (4, 8),
    }  # fmt: skip


def test_the_optimizers_own_all_parameters_once():
    masters = {name: torch.zeros(shape, requires_grad=True) for name, shape in SHAPES.items()}
    settings = Optimizer(name="muon", learning_rate=0.5, momentum=0.75, betas=(0.6, 0.7), eps=1e-3)
    groups = groups_of(SLICES, settings, HIDDEN)
    held = [
        Held(group, masters[name], [Fragment(name, 0, 0, masters[name].numel())])
        for group in groups
        for name in group.names
    ]
    device = torch.device("cpu")
    adamw, muon = build_optimizers(
        held, SLICES, settings, Mesh(), device=device, precision=PRECISIONS["fp32"]
    )
    owned = [p for each in (adamw, muon) for group in each.param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in masters.values()} and len(owned) == len(masters)
    assert isinstance(muon, Muon) and moments(muon) == ("momentum_buffer",)
    assert moments(adamw) == ("exp_avg", "exp_avg_sq")
    assert all(group["lr"] == 0.5 for each in (adamw, muon) for group in each.param_groups)
    assert muon.param_groups[0]["momentum"] == 0.75
    assert adamw.param_groups[0]["betas"] == (0.6, 0.7) and adamw.param_groups[0]["eps"] == 1e-3


def test_a_step_multiplies_what_is_configured():
    slow = replace(GROUP, names=("v",), learning_rate=0.125, weight_decay=0.0)
    optimizer = build_simple("adamw", [(GROUP, [torch.zeros(3)]), (slow, [torch.zeros(2)])], Optimizer())
    for values in (StepValues(0.5, 0.25, 0.75), StepValues(1.0, 0.5, 0.5), StepValues()):
        set_values([optimizer], values)
        found = [(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups]
        rate, decay, momentum, _ = values
        assert found == [
            (0.5 * rate, 0.25 * decay, 0.8 * momentum), (0.125 * rate, 0.0, 0.8 * momentum),
        ]  # fmt: skip


def test_a_parameter_of_stacked_matrices_has_one_group():
    settings = Optimizer.model_validate({"groups": [{"params": ["q", "k"], "learning_rate": 0.5}]})
    assert [g.names for g in groups_of(SLICES, settings, HIDDEN)] == [
        ("embedding.weight", "down.weight"), ("norm.weight",), ("qkv.weight",),
    ]  # fmt: skip
    split = Optimizer.model_validate({"groups": [{"params": ["q"]}]})
    with pytest.raises(UserError, match="q and k are one matrix in memory; match all of them or none"):
        groups_of(SLICES, split, HIDDEN)


def test_each_group_has_its_values_in_the_optimizer_that_updates_it():
    entries = [
        {"params": ["embedding.weight"], "learning_rate": 2.0, "betas": [0.5, 0.6], "eps": 1e-4},
        {"params": ["down.weight"], "learning_rate": 0.25, "momentum": 0.7, "weight_decay": 0.3},
    ]
    settings = Optimizer.model_validate({"name": "muon", "learning_rate": 0.5, "groups": entries})
    masters = {name: torch.zeros(shape, requires_grad=True) for name, shape in SHAPES.items()}
    held = [
        Held(group, masters[name], [Fragment(name, 0, 0, masters[name].numel())])
        for group in groups_of(SLICES, settings, HIDDEN)
        for name in group.names
    ]
    adamw, muon = build_optimizers(
        held, SLICES, settings, Mesh(), device=torch.device("cpu"), precision=PRECISIONS["fp32"]
    )
    vectors, embedding = adamw.param_groups
    assert vectors["params"][0] is masters["norm.weight"] and vectors["lr"] == 0.5
    assert (embedding["lr"], embedding["betas"], embedding["eps"]) == (2.0, (0.5, 0.6), 1e-4)
    found = [(g["lr"], g["momentum"], g["weight_decay"]) for g in muon.param_groups]
    assert found == [(0.5, 0.95, 0.1), (0.25, 0.7, 0.3)]
    assert [g["params"][0] is masters[n] for g, n in zip(muon.param_groups, ("qkv.weight", "down.weight"))]


class NoUpdate(llmkit.Optimizer):
    pass


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (torch.optim.SGD, "is no llmkit.Optimizer; make it a subclass"),
        (lambda groups, settings: None, "is no llmkit.Optimizer; make it a subclass"),
        (NoUpdate, "has no update(parameter, gradient, state, group)"),
    ],
)
def test_what_is_registered_but_no_optimizer_is_refused(monkeypatch, made, problem):
    monkeypatch.setattr(registry, "_components", {})
    registry.register("optimizer", "other")(made)
    with pytest.raises(UserError, match=re.escape(problem)):
        build_simple("other", [(GROUP, [torch.zeros(3)])], Optimizer())
