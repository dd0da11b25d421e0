"""The rules of DeepSpeed's keys are consistent with each other and with accelerate's settings."""

from __future__ import annotations

import dataclasses

from llmkit.parallel.accelerate import AccelerateConfig
from llmkit.parallel.deepspeed_keys import ALL, RULES, Compared, Fixed, Off, Passed, Refused


def test_what_is_compared_is_a_setting_of_accelerate() -> None:
    fields = {field.name for field in dataclasses.fields(AccelerateConfig)}
    compared = [rule.field for rule in RULES.values() if isinstance(rule, Compared)]
    assert set(compared) <= fields
    assert len(compared) == len(set(compared))


def test_what_is_passed_names_stages_that_there_are() -> None:
    for key, rule in RULES.items():
        if isinstance(rule, Passed):
            assert rule.stages and set(rule.stages) <= set(ALL), key


def test_every_refusal_says_what_to_do_instead() -> None:
    assert all(rule.instead for rule in RULES.values() if isinstance(rule, Fixed | Off | Refused))


def test_no_key_is_both_a_section_with_one_rule_and_listed_key_by_key() -> None:
    for key in RULES:
        assert not any(other.startswith(f"{key}.") for other in RULES), key
