"""A run that was saved under any layout goes on under any other, through a checkpoint on the disk."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chosen import chosen, few_at_every_commit
from tests.parity import elastic_cases
from tests.parity.elastic_cases import LAYOUTS, Pair
from tests.ranks import run_ranks

CASES = "tests.parity.elastic_cases"
NAMES = list(LAYOUTS)
FEW = [name for name in NAMES if name not in ("Z1x2", "native-Z2x2", "TP4", "Z1xTP2xDP2", "Z3xTP2xCP2")]
ALWAYS = {Pair("fp32", *names) for names in zip(FEW, FEW[3:] + FEW[:3])}
ALWAYS |= {Pair("fp32", name, name) for name in ("native-Z1x2", "Z2x2", "Z3xTP2xDP2", "native-Z1xCP2")}
ALWAYS |= {Pair("bf16", source, "Z3xTP2xDP2") for source in ("native", "Z3xTP2xDP2")}
"""Most layouts with one other, in both roles, those of each kind with themselves; the rest is for
`make test-all`."""
PAIRS = [Pair("fp32", source, target) for source in NAMES for target in NAMES]
PAIRS += [Pair("bf16", source, target) for target in NAMES for source in dict.fromkeys(["native", target])]


@pytest.fixture(scope="module")
def continued(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What came of each pair that was chosen. As few launches as there can be."""
    root = str(tmp_path_factory.mktemp("elastic"))
    pairs = list(map(list, chosen(request, "pair")))
    elastic_cases.start(root, pairs)
    run_ranks(4, f"{CASES}:start", root=root, pairs=pairs)
    found = run_ranks(2, f"{CASES}:start_and_go_on", root=root, pairs=pairs)[0]
    found |= run_ranks(4, f"{CASES}:go_on", root=root, pairs=pairs)[0]
    return found | elastic_cases.go_on(root, pairs)


@pytest.mark.drill(
    "D28",
    injection="saved under one layout, resumed under another: ZeRO 0 to 3, TP, shared rows, 1 to 4 ranks",
    expected="weights and moments are restored bit for bit, and end within 1e-5",
)
@pytest.mark.parametrize("pair", few_at_every_commit(PAIRS, ALWAYS))
def test_weights_and_moments_go_on_as_if_nothing_had_changed(continued, pair, measured):
    found, nothing = continued[str(pair)], dict.fromkeys(elastic_cases.KINDS, 0.0)
    measured(f"largest relative error of a weight in {pair.precision}", found["end"]["master"], "")
    assert found["updates"] == 10
    assert found["restored"] == nothing
    if pair.source == pair.target:
        assert found["end"] == nothing
    elif pair.precision == "fp32":
        assert found["end"]["master"] <= 1e-5 and found["end"]["ema"] <= 1e-5
        assert found["end"]["exp_avg"] <= 1e-5 and found["end"]["exp_avg_sq"] <= 2e-5
        assert found["end"]["momentum_buffer"] <= 1e-5
    else:
        assert found["end"]["master"] < 5e-3
