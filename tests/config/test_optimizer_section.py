"""The settings of optimizers, groups of parameters and schedules."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmkit.config.optimizer_section import Optimizer, ParameterGroup


def test_a_group_gives_what_it_changes():
    section = Optimizer.model_validate(
        {"groups": [{"params": ["*.bias"], "betas": [0.8, 0.9]}, {"params": ["head.*"], "name": "adamw"}]}
    )
    assert section.groups[0] == ParameterGroup(params=["*.bias"], betas=(0.8, 0.9))
    assert section.groups[0].learning_rate is section.groups[0].weight_decay is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"params": []},
        {"params": [""]},
        {"params": ["x" * 201]},
        {"params": "embedding.weight"},
        {"params": ["*"], "learning_rate": 0.0},
        {"params": ["*"], "momentum": 1.0},
        {"params": ["*"], "betas": [0.9, 1.0]},
        {"params": ["*"], "weight_decay": -0.1},
        {"params": ["*"], "name": "sgd"},
        {"learning_rate": 0.1},
    ],
)
def test_what_no_group_can_be(wrong):
    with pytest.raises(ValidationError):
        Optimizer.model_validate({"groups": [wrong]})


def test_its_rules_are_those_of_its_groups_too():
    groups = [{"params": ["a"], "name": "adamw"}, {"params": ["b"]}]
    assert Optimizer.model_validate({"name": "muon", "groups": groups}).rules == {"adamw", "muon"}
    assert Optimizer().rules == {"adamw"}
