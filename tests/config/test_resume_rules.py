"""The rule of each setting for a run that goes on."""

from __future__ import annotations

import pytest

from llmkit.config.keys import keys
from llmkit.config.resume_rules import RESUME_POLICIES

KINDS = {
    "model.hidden_size": "fixed",
    "model.qk_norm": "fixed",
    "model.hidden_dropout": "warned",
    "model.rope_theta": "warned",
    "model.vocab_pad_multiple": "free",
    "run.seed": "fixed",
    "run.name": "free",
    "data.errors": "content",
    "data.sequence_length": "data",
    "data.sources.N.path": "content",
    "data.sources.N.weight": "data",
    "data.tokenizer.vocab_size": "content",
    "train.max_steps": "warned",
    "train.global_batch_size": "warned",
    "train.micro_batch_size": "free",
    "optimizer.name": "fixed",
    "optimizer.learning_rate": "warned",
    "schedule.steps": "warned",
    "parallel.zero_stage": "free",
}


def test_every_setting_has_a_rule_of_its_own_with_a_reason() -> None:
    assert sorted(RESUME_POLICIES) == sorted(key.path for key in keys())
    assert [path for path, rule in RESUME_POLICIES.items() if not rule.reason] == []


@pytest.mark.parametrize("path", KINDS)
def test_the_kind_of_some_settings(path: str) -> None:
    assert RESUME_POLICIES[path].kind == KINDS[path]
