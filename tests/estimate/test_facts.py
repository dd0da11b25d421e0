"""A device of the table is, for a plan, what the same device is when it is at hand."""

from __future__ import annotations

import pytest

from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of


def test_the_facts_of_a_gpu():
    facts = facts_of(Hardware().device("h100"))
    assert (facts.kind, facts.capability, facts.has_bf16_units) == ("cuda", (9, 0), True)
    assert facts.free_bytes == pytest.approx(0.94 * 81_559 * 2**20)
    assert facts.compiler_missing is None and facts.triton and not facts.flash


def test_amds_have_no_capability():
    assert facts_of(Hardware().device("mi300x")).capability is None
