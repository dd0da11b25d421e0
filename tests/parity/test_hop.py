"""A run of a mixture hops over four layouts, with experts dealt out and without, on one curve."""

from __future__ import annotations

import pytest

from tests.parity.hop_cases import LAYOUTS, STEPS, alone
from tests.ranks import run_ranks


@pytest.mark.exhaustive
def test_a_mixture_hops_over_four_layouts_as_if_nothing_had_changed(tmp_path):
    found = run_ranks(4, "tests.parity.hop_cases:hop", root=str(tmp_path))[0]
    assert len(found) == (STEPS + 1) * len(LAYOUTS)
    for mine, wanted in zip(found, alone(), strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)
