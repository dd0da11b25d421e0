"""What a plan takes of a device from the table is what the same device says of itself."""

from __future__ import annotations

import pytest
import torch

from llmkit.cores import host_memory
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.estimate.facts import facts_of
from llmkit.loop.auto_layout import fleet_of
from llmkit.parallel.rank_info import RankInfo


def test_a_device_of_a_launch_is_as_the_table_says(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device.type == "cuda")
    try:
        found = fleet_of(RankInfo()).device
    except UserError as missing:
        pytest.skip(str(missing))
    facts, real = facts_of(found), device_facts(device, compiled=True)
    assert (facts.kind, facts.has_bf16_units) == (real.kind, real.has_bf16_units)
    total = host_memory()
    if device.type == "cuda":
        assert (facts.triton, facts.varlen) == (real.triton, real.varlen)
        assert facts.capability is None or facts.capability[0] == (real.capability or (0, 0))[0]
        total = torch.cuda.get_device_properties(device).total_memory
    assert found.memory == pytest.approx(total, rel=0.03)
