"""A verdict and its row of the table; one case that cannot be judged hides no other."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from llmkit.parallel.mesh import Mesh
from llmkit.parity import suite
from llmkit.parity.cases import Case
from llmkit.parity.compare import Deviation
from llmkit.parity.suite import HEADING, Verdict, run_cases

CASES = [Case("gpt2", 0, 1, 1, False, accumulation, "none", True, "fp32", "none") for accumulation in (1, 3)]
DIFFERENCES = [
    Deviation("initial loss", "", 1e-9, 1e-6), Deviation("loss", "", 2e-7, 1e-5),
    Deviation("weight", "norm.weight", 3e-2, 1e-5),
]  # fmt: skip


def test_a_row_has_the_worst_of_each_sort_and_what_failed():
    verdict = Verdict(CASES[0], DIFFERENCES, 1.25)
    assert verdict.worst("initial loss", "loss") == 2e-7
    assert verdict.failures == [str(DIFFERENCES[2])]
    row = verdict.row()
    assert row.startswith(str(CASES[0])) and row.endswith(f"FAILED: {DIFFERENCES[2]}")
    values = row[suite.WIDTH :].split()
    assert dict(zip(HEADING.split()[1:], values, strict=False)) == {
        "loss": "2.0e-07", "norm": "nan", "gradient": "nan", "weight": "3.0e-02", "moment": "nan", "s": "1.2",
    }  # fmt: skip
    assert Verdict(CASES[0], DIFFERENCES[:2], 1.0).row().endswith("  equal")


def test_pieces_that_are_no_whole_are_a_difference_and_the_next_case_is_judged(alone):
    ran = []

    def run_case(case: Case, mesh: Mesh, device: torch.device):
        ran.append(case)
        if len(ran) == 1:
            raise ValueError("master of norm.weight: an element is missing")
        return alone

    with (
        patch.object(suite, "run_case", run_case),
        patch.object(suite, "run_alone", lambda *_: alone),
    ):
        first, second = run_cases(CASES, lambda tensor, context, experts: Mesh(), torch.device("cpu"))
    assert [verdict.case for verdict in (first, second)] == ran == CASES
    assert [each.sort for each in first.differences] == ["state"]
    assert "an element is missing" in first.row() and first.failures
    assert second.failures == []
    assert first.worst("loss") != pytest.approx(0.0)
