"""A run that was saved under any layout goes on under any other, through a checkpoint on the disk."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity import elastic_cases
from tests.parity.elastic_cases import LAYOUTS
from tests.ranks import run_ranks

ROOM = "tests.parity.elastic_cases"


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """ "PRECISION SOURCE -> LAYOUT" -> what came of it. As few launches as there can be."""
    root = str(tmp_path_factory.mktemp("elastic"))
    elastic_cases.start(root)
    run_ranks(4, f"{ROOM}:start", root=root)
    found = run_ranks(2, f"{ROOM}:start_and_go_on", root=root)[0]
    found |= run_ranks(4, f"{ROOM}:go_on", root=root)[0]
    return found | elastic_cases.go_on(root)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_weights_and_moments_go_on_as_if_nothing_had_changed(continued, source, target):
    found = continued[f"fp32 {source} -> {target}"]
    assert found["updates"] == 10
    assert found["restored"] == {"master": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}
    if source == target:
        assert found["end"] == {"master": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}
    else:
        assert found["end"]["master"] <= 1e-5
        assert found["end"]["exp_avg"] <= 1e-5 and found["end"]["exp_avg_sq"] <= 2e-5


@pytest.mark.parametrize("target", LAYOUTS)
def test_in_bf16_no_bit_of_the_masters_is_lost(continued, target):
    own, native = (continued[f"bf16 {source} -> {target}"] for source in (target, "native"))
    assert own["restored"] == native["restored"] == {"master": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}
    assert own["end"] == {"master": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}
    assert native["end"]["master"] < 5e-3
