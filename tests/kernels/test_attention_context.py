"""Ulysses and ring, on three ranks: values and gradients are those of one rank."""

from __future__ import annotations

from tests.ranks import run_ranks


def test_ranks_that_share_rows_compute_what_one_does():
    for errors in run_ranks(3, "tests.kernels.context_cases:largest_errors"):
        assert len(errors) == 19
        assert {case: error for case, error in errors.items() if not error < 1.0} == {}
